#include "engines/trt/shapes.hpp"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>

#include "errors.hpp"
#include "text.hpp"

namespace prtool::trt {

namespace {

// Raise it when the same options come to build something else, here and in the Python package.
constexpr const char* kRecipe = "recipe=1";

// Free axes in their order, then inputs that are shapes.
std::vector<std::string> dynamic_names(const std::vector<TensorSpec>& inputs) {
    std::vector<std::string> names;
    const auto add = [&names](const std::string& name) {
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    };
    for (const TensorSpec& spec : inputs) {
        for (const auto& axis : spec.shape) {
            if (const auto* name = std::get_if<std::string>(&axis)) add(*name);
        }
    }
    for (const TensorSpec& spec : inputs) {
        if (is_shape_input(spec)) add(spec.name);
    }
    return names;
}

std::vector<std::string> split(const std::string& text, const std::string& separator) {
    std::vector<std::string> parts;
    std::size_t start = 0;
    for (std::size_t end = text.find(separator); end != std::string::npos; end = text.find(separator, start)) {
        parts.push_back(text.substr(start, end - start));
        start = end + separator.size();
    }
    parts.push_back(text.substr(start));
    return parts;
}

std::optional<std::int64_t> number(const std::string& text) {
    const bool digits = !text.empty() && text.size() <= 18 && text.find_first_not_of("0123456789") == std::string::npos;
    return digits ? std::optional<std::int64_t>(std::strtoll(text.c_str(), nullptr, 10)) : std::nullopt;
}

[[noreturn]] void refuse_text(const std::string& text) {
    throw Error(Status::engine, "'" + text + "' in the record of an engine is nothing that this version writes; build it again with 'prtool build --rebuild'");
}

std::pair<std::string, ShapeRange> parse_range(const std::string& part, const std::string& whole) {
    const std::size_t space = part.rfind(' ');
    if (space == std::string::npos) refuse_text(whole);
    const std::vector<std::string> texts = split(part.substr(space + 1), ":");
    std::vector<std::int64_t> numbers;
    for (const std::string& text : texts) numbers.push_back(number(text).value_or(0));
    if (numbers.size() != 3 || numbers[0] < 1 || numbers[1] < numbers[0] || numbers[2] < numbers[1]) refuse_text(whole);
    return {part.substr(0, space), {numbers[0], numbers[1], numbers[2]}};
}

bool same(const Profile& one, const Profile& other) {
    return profiles_text({one}) == profiles_text({other});
}

std::string numbers_text(const std::vector<std::int64_t>& values) {
    std::vector<std::string> texts;
    for (const std::int64_t value : values) texts.push_back(std::to_string(value));
    return joined(texts);
}

bool holds(const Profile& profile, const Sizes& sizes) {
    return std::all_of(sizes.begin(), sizes.end(), [&](const auto& item) {
        const ShapeRange& allowed = profile.at(item.first);
        return std::all_of(item.second.begin(), item.second.end(), [&](std::int64_t value) { return allowed.least <= value && value <= allowed.most; });
    });
}

// How many shapes a profile has, and how far its usual sizes are. Products of ranges can pass 64 bits, never a double's range.
std::pair<double, std::int64_t> narrowness(const Profile& profile, const Sizes& sizes) {
    double width = 1.0;
    std::int64_t distance = 0;
    for (const auto& [name, values] : sizes) {
        const ShapeRange& allowed = profile.at(name);
        width *= static_cast<double>(allowed.most - allowed.least + 1);
        for (const std::int64_t value : values) distance += std::abs(value - allowed.usual);
    }
    return {width, distance};
}

std::string remedy(const std::string& name, std::int64_t value, const std::vector<Profile>& profiles, const std::string& command) {
    if (name == "batch") {
        const ShapeRange& old = profiles.front().at(name);
        const std::int64_t least = std::min(old.least, value), most = std::max(old.most, value);
        return "build it again with '" + command + " --batch " + std::to_string(least) + ":" + std::to_string(old.usual) + ":" + std::to_string(most) + "'";
    }
    const auto varies = [&name](const Profile& profile) { return profile.at(name).least < profile.at(name).most; };
    if (std::any_of(profiles.begin(), profiles.end(), varies)) {
        return "the bundle allows no other; build it again with '" + command + "', or export the bundle again for other counts";
    }
    if (name == "tokens") {
        return "build it again with '" + command + "' for every count, or add the count behind these tokens to --keep";
    }
    std::set<std::int64_t> counts{value};
    for (const Profile& profile : profiles) counts.insert(profile.at(name).usual);
    std::string text;
    for (const std::int64_t count : counts) text += (text.empty() ? "" : ",") + std::to_string(count);
    return "build it again with '" + command + " --keep " + text + "', or without --keep for every count";
}

std::string outside(const std::vector<Profile>& profiles, const Sizes& sizes, const std::string& graph, const std::string& engine) {
    const std::string command = "prtool build --engine " + engine;
    for (const auto& [name, values] : sizes) {
        std::set<std::pair<std::int64_t, std::int64_t>> ranges;
        for (const Profile& profile : profiles) ranges.emplace(profile.at(name).least, profile.at(name).most);
        const auto fits = [&ranges](std::int64_t value) {
            return std::any_of(ranges.begin(), ranges.end(), [value](const auto& range) { return range.first <= value && value <= range.second; });
        };
        const auto wrong = std::find_if_not(values.begin(), values.end(), fits);
        if (wrong == values.end()) continue;
        std::vector<std::string> built;
        for (const auto& [low, high] : ranges) built.push_back(low == high ? std::to_string(low) : std::to_string(low) + " to " + std::to_string(high));
        return name + " = " + std::to_string(*wrong) + ", but " + graph + " was built for " + joined(built) + "; " + remedy(name, *wrong, profiles, command);
    }
    return graph + " was built for " + profiles_text(profiles) + ", and no single profile of these holds " + words(sizes) + "; build it with '" + command + "'";
}

const TensorRef& given(const std::vector<TensorRef>& tensors, const TensorSpec& spec, const std::string& graph) {
    const auto found = std::find_if(tensors.begin(), tensors.end(), [&spec](const TensorRef& tensor) { return spec.name == tensor.name; });
    if (found == tensors.end()) throw Error(Status::shape, graph + " takes " + spec.name + ", but it was not given");
    if (found->shape.size() != spec.shape.size()) {
        throw Error(Status::shape, graph + ": " + spec.name + " has shape " + listed(found->shape) + ", but the graph takes " +
                                       std::to_string(spec.shape.size()) + " axes");
    }
    return *found;
}

}  // namespace

bool is_shape_input(const TensorSpec& spec) {
    return spec.dtype == "int64" && spec.shape.size() == 1 && std::holds_alternative<std::int64_t>(spec.shape.front());
}

std::vector<Profile> graph_profiles(const std::vector<TensorSpec>& inputs, const std::vector<Profile>& profiles) {
    const std::vector<std::string> names = dynamic_names(inputs);
    std::vector<Profile> chosen;
    for (const Profile& profile : profiles) {
        Profile own;
        for (const std::string& name : names) {
            const auto range = profile.find(name);
            if (range == profile.end()) {
                throw Error(Status::config,
                            "no range is given for " + name + ", but TensorRT builds for ranges of every size that varies (" + joined(names) + ")");
            }
            own.insert(*range);
        }
        if (std::none_of(chosen.begin(), chosen.end(), [&own](const Profile& other) { return same(own, other); })) chosen.push_back(own);
    }
    return chosen;
}

std::string profiles_text(const std::vector<Profile>& profiles) {
    std::string text;
    for (const Profile& profile : profiles) {
        std::vector<std::string> parts;
        for (const auto& [name, range] : profile) {
            parts.push_back(name + " " + std::to_string(range.least) + ":" + std::to_string(range.usual) + ":" + std::to_string(range.most));
        }
        text += (&profile == &profiles.front() ? "" : " | ") + joined(parts);
    }
    return text;
}

std::vector<Profile> parse_profiles(const std::string& text) {
    std::vector<Profile> profiles;
    for (const std::string& one : split(text, " | ")) {
        Profile profile;
        for (const std::string& part : split(one, ", ")) {
            if (!part.empty()) profile.insert(parse_range(part, text));
        }
        profiles.push_back(profile);
    }
    return profiles;
}

std::string builder_text(const BuildOptions& options) {
    return std::string(kRecipe) + " level=" + std::to_string(options.level) + " workspace_mib=" + std::to_string(options.workspace_mib) +
           " timing_cache=" + (options.timing_cache ? "1" : "0") + " version_compatible=" + (options.version_compatible ? "1" : "0") +
           " hardware_compatible=" + (options.hardware_compatible ? "1" : "0") + " strip_weights=" + (options.strip_weights ? "1" : "0");
}

BuildOptions parse_builder(const std::string& text) {
    std::map<std::string, std::int64_t> values;
    for (const std::string& part : split(text, " ")) {
        const std::size_t sign = part.find('=');
        const auto value = sign == std::string::npos ? std::nullopt : number(part.substr(sign + 1));
        if (!value) refuse_text(text);
        values[part.substr(0, sign)] = *value;
    }
    BuildOptions options;
    options.level = static_cast<int>(std::min<std::int64_t>(values["level"], 5));
    options.workspace_mib = values["workspace_mib"];
    options.timing_cache = values["timing_cache"] != 0;
    options.version_compatible = values["version_compatible"] != 0;
    options.hardware_compatible = values["hardware_compatible"] != 0;
    options.strip_weights = values["strip_weights"] != 0;
    if (builder_text(options) != text) refuse_text(text);
    return options;
}

Recipe as_built_last(const EngineCache& cache, const EngineKey& key, const Recipe& asked) {
    const auto last = cache.latest(key, {&EngineKey::profiles, &EngineKey::builder});
    if (!last || last->key.builder.compare(0, std::string(kRecipe).size() + 1, std::string(kRecipe) + " ") != 0) return asked;
    return {parse_profiles(last->key.profiles), parse_builder(last->key.builder)};
}

Sizes call_sizes(const std::vector<TensorSpec>& inputs, const std::vector<TensorRef>& tensors, const std::string& graph) {
    Sizes sizes;
    const auto set = [&sizes](const std::string& name, std::vector<std::int64_t> values) {
        const auto found = std::find_if(sizes.begin(), sizes.end(), [&name](const auto& item) { return item.first == name; });
        if (found != sizes.end()) {
            found->second = std::move(values);
        } else {
            sizes.emplace_back(name, std::move(values));
        }
    };
    for (const TensorSpec& spec : inputs) {
        const TensorRef& tensor = given(tensors, spec, graph);
        if (is_shape_input(spec)) {
            const auto* const values = static_cast<const std::int64_t*>(tensor.data);
            set(spec.name, {values, values + tensor.shape.front()});
            continue;
        }
        for (std::size_t place = 0; place < spec.shape.size(); ++place) {
            if (const auto* name = std::get_if<std::string>(&spec.shape[place])) set(*name, {tensor.shape[place]});
        }
    }
    return sizes;
}

std::string words(const Sizes& sizes) {
    std::vector<std::string> texts;
    for (const auto& [name, values] : sizes) texts.push_back(name + " = " + numbers_text(values));
    return sizes.empty() ? "its only shapes" : joined(texts);
}

std::size_t choose_profile(const std::vector<Profile>& profiles, const Sizes& sizes, const std::string& graph, const std::string& engine) {
    std::optional<std::size_t> best;
    for (std::size_t place = 0; place < profiles.size(); ++place) {
        if (!holds(profiles[place], sizes)) continue;
        if (!best || narrowness(profiles[place], sizes) < narrowness(profiles[*best], sizes)) best = place;
    }
    if (!best) throw Error(Status::shape, outside(profiles, sizes, graph, engine));
    return *best;
}

}  // namespace prtool::trt
