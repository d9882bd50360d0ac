// Strict reading of JSON: a value is of the declared kind, an object has the declared fields, or an error names the place.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace prtool {

// One value and its place ("manifest.prune.grid"). Every method throws Error(Status::bundle) where the value is another.
class JsonReader {
public:
    JsonReader(const nlohmann::json& value, std::string where) : value_(&value), where_(std::move(where)) {}

    std::string text() const;
    bool boolean() const;
    double number() const;
    // A whole number from `least` to `most`.
    std::int64_t whole(std::int64_t least = 0, std::int64_t most = std::int64_t{1} << 40) const;
    bool is_null() const { return value_->is_null(); }
    bool is_text() const { return value_->is_string(); }

    // An object with exactly the fields `required`, and any of `optional`.
    void fields(std::initializer_list<const char*> required, std::initializer_list<const char*> optional = {}) const;
    JsonReader at(const char* name) const;
    std::optional<JsonReader> maybe(const char* name) const;  // nothing where it is missing or null
    std::vector<std::pair<std::string, JsonReader>> entries() const;
    std::vector<JsonReader> items() const;
    // A list or object of no more than so many items.
    void at_most(std::size_t length) const;
    std::vector<JsonReader> items(std::size_t length) const;

    template <typename T>
    std::vector<T> list(const std::function<T(const JsonReader&)>& read) const {
        std::vector<T> found;
        for (const JsonReader& item : items()) found.push_back(read(item));
        return found;
    }

    [[noreturn]] void reject(const std::string& wanted) const;

private:
    const nlohmann::json* value_;
    std::string where_;
};

}  // namespace prtool
