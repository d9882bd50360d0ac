#include "engines/trt/shapes.hpp"

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "errors.hpp"

namespace prtool::trt {

namespace {

bool holds(const Profile& profile, const std::string& name, std::int64_t value) {
    const auto range = profile.find(name);
    return range != profile.end() && range->second.min <= value && value <= range->second.max;
}

bool holds(const Profile& profile, const Sizes& sizes) {
    return std::all_of(sizes.begin(), sizes.end(), [&profile](const auto& item) {
        return std::all_of(item.second.begin(), item.second.end(), [&](std::int64_t value) { return holds(profile, item.first, value); });
    });
}

// How many shapes a profile has, and how far its optimal sizes are. Products of ranges can pass 64 bits, never a double's range.
std::pair<double, std::int64_t> narrowness(const Profile& profile, const Sizes& sizes) {
    double width = 1.0;
    std::int64_t distance = 0;
    for (const auto& [name, values] : sizes) {
        const ShapeRange& allowed = profile.at(name);
        width *= static_cast<double>(allowed.max - allowed.min + 1);
        for (const std::int64_t value : values) distance += std::abs(value - allowed.opt);
    }
    return {width, distance};
}

// The first size that no profile holds, else the whole call, which no single profile holds.
std::string outside(const std::vector<Profile>& profiles, const Sizes& sizes) {
    for (const auto& [name, values] : sizes) {
        for (const std::int64_t value : values) {
            const auto fits = [&name = name, value](const Profile& profile) { return holds(profile, name, value); };
            if (std::none_of(profiles.begin(), profiles.end(), fits)) return name + " = " + std::to_string(value);
        }
    }
    return sizes_text(sizes) + " together";
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

std::string profiles_text(const std::vector<Profile>& profiles) {
    std::string text;
    for (const Profile& profile : profiles) {
        std::vector<std::string> parts;
        for (const auto& [name, range] : profile) {
            parts.push_back(name + " " + std::to_string(range.min) + ":" + std::to_string(range.opt) + ":" + std::to_string(range.max));
        }
        text += (&profile == &profiles.front() ? "" : " | ") + joined(parts);
    }
    return text;
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
            const std::int64_t count = tensor.shape.front();
            for (std::int64_t place = 0; place < count; ++place) {
                set(count == 1 ? spec.name : spec.name + "[" + std::to_string(place + 1) + "]", {values[place]});
            }
            continue;
        }
        for (std::size_t place = 0; place < spec.shape.size(); ++place) {
            if (const auto* name = std::get_if<std::string>(&spec.shape[place])) set(*name, {tensor.shape[place]});
        }
    }
    return sizes;
}

std::string sizes_text(const Sizes& sizes) {
    std::vector<std::string> texts;
    for (const auto& [name, values] : sizes) {
        std::vector<std::string> numbers;
        for (const std::int64_t value : values) numbers.push_back(std::to_string(value));
        texts.push_back(name + " = " + joined(numbers));
    }
    return sizes.empty() ? "its only shapes" : joined(texts);
}

std::size_t choose_profile(const std::vector<Profile>& profiles, const Sizes& sizes, const std::string& graph, const std::string& command) {
    std::optional<std::size_t> best;
    for (std::size_t place = 0; place < profiles.size(); ++place) {
        if (!holds(profiles[place], sizes)) continue;
        if (!best || narrowness(profiles[place], sizes) < narrowness(profiles[*best], sizes)) best = place;
    }
    if (best) return *best;
    throw Error(Status::shape, outside(profiles, sizes) + ", but " + graph + " was built for " + profiles_text(profiles) + "; build it for this call with '" +
                                   command + "' and --batch MIN:OPT:MAX, or --keep K for one count");
}

}  // namespace prtool::trt
