// Values as they stand in messages.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace prtool {

// Characters after which a list in a message is cut.
inline constexpr std::size_t kMostListed = 300;

// A text of a file, cut to what a message has space for; no character of UTF-8 is cut in two.
inline std::string shortened(const std::string& text, std::size_t most = 120) {
    if (text.size() <= most) return text;
    std::size_t end = most;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;
    return text.substr(0, end) + "...";
}

inline std::string shown(double value) {
    std::ostringstream text;
    text << value;
    return text.str();
}

inline std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) {
        if (text.size() > kMostListed) return text + ", ...";
        text += (text.empty() ? "" : ", ") + shortened(name);
    }
    return text;
}

inline std::string listed(const std::vector<std::int64_t>& values) {
    std::string text;
    for (const std::int64_t value : values) {
        text += (text.empty() ? "" : ", ") + (text.size() > kMostListed ? "..." : std::to_string(value));
        if (text.size() > kMostListed + 4) break;
    }
    return "[" + text + "]";
}

}  // namespace prtool
