// JSON from untrusted files: parsed within bounds, then read strictly: a value is of the declared kind, or an error names its place.
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

inline constexpr int kMostNesting = 32;
// Whole numbers that float64 holds exactly: every JSON reader agrees on them.
inline constexpr std::int64_t kMostWhole = std::int64_t{1} << 53;

// `where` names the file in messages. Throws Error(Status::bundle): not JSON in UTF-8, nested deeper than kMostNesting, a name
// twice in one object, a whole number beyond +-kMostWhole, or a number that is not finite.
nlohmann::json parse_strictly(const std::string& text, const std::string& where);

// One value and its place ("manifest.prune.grid"). Every method throws Error(Status::bundle) where the value is another.
class JsonReader {
public:
    JsonReader(const nlohmann::json& value, std::string where) : value_(&value), where_(std::move(where)) {}

    std::string text() const;
    bool boolean() const;
    double number() const;
    // A whole number from `min` to `max`.
    std::int64_t whole(std::int64_t min = 0, std::int64_t max = std::int64_t{1} << 40) const;
    bool is_text() const { return value_->is_string(); }

    // An object with exactly the fields `required`, and any of `optional`.
    void fields(std::initializer_list<const char*> required, std::initializer_list<const char*> optional = {}) const;
    JsonReader at(const char* name) const;
    std::optional<JsonReader> maybe(const char* name) const;  // nothing where it is missing or null
    std::int64_t whole_or(const char* name, std::int64_t otherwise, std::int64_t min, std::int64_t max) const {
        const std::optional<JsonReader> found = maybe(name);
        return found ? found->whole(min, max) : otherwise;
    }
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
