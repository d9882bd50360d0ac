#include "strict_json.hpp"

#include <set>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "text.hpp"

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

}  // namespace

json parse_strictly(const std::string& text, const std::string& where) {
    Checks checks;
    if (!json::sax_parse(text, &checks)) throw Error(Status::bundle, where + " cannot be read: " + checks.problem() + "; export the bundle again");
    return json::parse(text);
}

}  // namespace prtool
