// Values as they stand in messages.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace prtool {

inline std::string shown(double value) {
    std::ostringstream text;
    text << value;
    return text.str();
}

inline std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

inline std::string listed(const std::vector<std::int64_t>& values) {
    std::string text;
    for (const std::int64_t value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
    return "[" + text + "]";
}

}  // namespace prtool
