#include "json.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "errors.hpp"

namespace prtool {

namespace {

using nlohmann::json;

// Looks at every value before one is stored, and stops at the first that is not allowed.
class Checks final : public nlohmann::json_sax<json> {
public:
    const std::string& problem() const { return problem_; }

    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(std::int64_t value) override { return value >= -kMostWhole || wrong(beyond(std::to_string(value))); }
    bool number_unsigned(std::uint64_t value) override { return value <= static_cast<std::uint64_t>(kMostWhole) || wrong(beyond(std::to_string(value))); }
    // A whole number that 64 bits do not hold comes as a float.
    bool number_float(double, const std::string& text) override {
        return text.find_first_of(".eE") != std::string::npos || wrong(beyond(text));
    }
    bool string(std::string&) override { return true; }
    bool binary(json::binary_t&) override { return true; }
    bool start_array(std::size_t) override { return deeper(); }
    bool end_array() override { return higher(); }
    bool start_object(std::size_t) override { return deeper(); }
    bool end_object() override { return higher(); }
    bool key(std::string& name) override { return names_.back().insert(name).second || wrong("it has the name '" + shortened(name) + "' twice in one object"); }
    bool parse_error(std::size_t place, const std::string&, const nlohmann::detail::exception& cause) override {
        // A number out of float64's range is the one error that is not of the form.
        return wrong((cause.id == 406 ? "it has a number that is not finite, at byte " : "it is not JSON from byte ") + std::to_string(place) + " on");
    }

private:
    static std::string beyond(const std::string& number) { return "it has the whole number " + shortened(number) + ", beyond 2^53"; }
    bool wrong(std::string problem) {
        problem_ = std::move(problem);
        return false;
    }
    bool deeper() {
        names_.emplace_back();
        return names_.size() <= kMostNesting || wrong("it is nested deeper than " + std::to_string(kMostNesting));
    }
    bool higher() {
        names_.pop_back();
        return true;
    }

    std::vector<std::set<std::string>> names_;  // of each object that is open; unused for lists
    std::string problem_;
};

constexpr std::size_t kShown = 60;

// A value as it is shown in a message; bytes that are not UTF-8 are replaced, a long value is cut.
std::string excerpt(const nlohmann::json& value) {
    if (value.is_structured() && value.size() > kShown) return (value.is_array() ? "a list of " : "an object of ") + std::to_string(value.size()) + " items";
    const std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    return shortened(text, kShown);
}

}  // namespace

json parse_strictly(const std::string& text, const std::string& where) {
    Checks checks;
    if (!json::sax_parse(text, &checks)) throw Error(Status::bundle, where + " cannot be read: " + checks.problem() + "; export the bundle again");
    return json::parse(text);
}

void JsonReader::reject(const std::string& wanted) const {
    throw Error(Status::bundle, where_ + " should be " + wanted + ", but it is " + excerpt(*value_) +
                                    "; the manifest is damaged or was edited, export the bundle again");
}

std::string JsonReader::text() const {
    if (!value_->is_string()) reject("text");
    return value_->get<std::string>();
}

bool JsonReader::boolean() const {
    if (!value_->is_boolean()) reject("true or false");
    return value_->get<bool>();
}

double JsonReader::number() const {
    if (!value_->is_number()) reject("a number");
    const double found = value_->get<double>();
    if (!std::isfinite(found)) reject("a finite number");
    return found;
}

std::int64_t JsonReader::whole(std::int64_t min, std::int64_t max) const {
    const std::string wanted = "a whole number from " + std::to_string(min) + " to " + std::to_string(max);
    if (!value_->is_number_integer()) reject(wanted);
    // An unsigned number above the signed range would turn negative.
    if (value_->is_number_unsigned() && value_->get<std::uint64_t>() > static_cast<std::uint64_t>(max)) reject(wanted);
    const auto found = value_->get<std::int64_t>();
    if (found < min || found > max) reject(wanted);
    return found;
}

void JsonReader::fields(std::initializer_list<const char*> required, std::initializer_list<const char*> optional) const {
    if (!value_->is_object()) reject("an object");
    std::set<std::string> known(required.begin(), required.end());
    known.insert(optional.begin(), optional.end());
    for (const auto& item : value_->items()) {
        if (known.count(item.key()) == 0) reject("an object without the field " + prtool::shortened(item.key()));
    }
    for (const char* name : required) {
        if (!value_->contains(name)) reject(std::string("an object with the field ") + name);
    }
}

JsonReader JsonReader::at(const char* name) const {
    return {value_->at(name), where_ + "." + name};
}

std::optional<JsonReader> JsonReader::maybe(const char* name) const {
    const auto found = value_->find(name);
    if (found == value_->end() || found->is_null()) return std::nullopt;
    return JsonReader(*found, where_ + "." + name);
}

std::vector<std::pair<std::string, JsonReader>> JsonReader::entries() const {
    if (!value_->is_object()) reject("an object");
    std::vector<std::pair<std::string, JsonReader>> found;
    for (const auto& item : value_->items()) found.emplace_back(item.key(), JsonReader(item.value(), where_ + "." + item.key()));
    return found;
}

std::vector<JsonReader> JsonReader::items() const {
    if (!value_->is_array()) reject("a list");
    std::vector<JsonReader> found;
    for (std::size_t place = 0; place < value_->size(); ++place) {
        found.emplace_back((*value_)[place], where_ + "[" + std::to_string(place) + "]");
    }
    return found;
}

void JsonReader::at_most(std::size_t length) const {
    if (value_->size() > length) reject("at most " + std::to_string(length) + " items, not " + std::to_string(value_->size()));
}

std::vector<JsonReader> JsonReader::items(std::size_t length) const {
    std::vector<JsonReader> found = items();
    if (found.size() != length) reject("a list of " + std::to_string(length) + " items");
    return found;
}

}  // namespace prtool
