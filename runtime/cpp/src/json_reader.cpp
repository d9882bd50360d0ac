#include "json_reader.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "errors.hpp"
#include "text.hpp"

namespace prtool {

namespace {

constexpr std::size_t kShown = 60;

// A value as it stands in a message; bytes that are no UTF-8 are replaced, a long value is cut.
std::string excerpt(const nlohmann::json& value) {
    if (value.is_structured() && value.size() > kShown) return (value.is_array() ? "a list of " : "an object of ") + std::to_string(value.size()) + " items";
    const std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    return shortened(text, kShown);
}

}  // namespace

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

std::int64_t JsonReader::whole(std::int64_t least, std::int64_t most) const {
    const std::string wanted = "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
    if (!value_->is_number_integer()) reject(wanted);
    // An unsigned number above the signed range would turn negative.
    if (value_->is_number_unsigned() && value_->get<std::uint64_t>() > static_cast<std::uint64_t>(most)) reject(wanted);
    const auto found = value_->get<std::int64_t>();
    if (found < least || found > most) reject(wanted);
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
