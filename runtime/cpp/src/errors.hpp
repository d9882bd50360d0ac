// Every error that the library raises on purpose: a status code and a message that says what was wrong,
// which value it had, what was possible, and what to do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace prtool {

// The numbers are those of prtool_status in prtool.h, and the names those of Python's exception tree.
enum class Status {
    ok = 0,
    config = 1,              // ConfigError
    keep = 2,                // KeepError
    shape = 3,               // ShapeError
    data = 4,                // DataError
    image = 5,               // ImageError
    bundle = 6,              // BundleError
    engine = 7,              // EngineError
    engine_unavailable = 8,  // EngineUnavailable
    storage = 9,             // StorageError
    memory = 10,             // out of memory
    internal = 11,           // a fault of the library itself
};

// Most bytes of a message; what it quotes from a file can be as long as the file.
inline constexpr std::size_t kMostMessageBytes = 1000;

// A character that hides or reorders text at `place` of UTF-8, and its bytes; 0 where there is another.
inline unsigned hidden_at(const std::string& text, std::size_t place, std::size_t& bytes) {
    const auto byte = [&](std::size_t offset) { return place + offset < text.size() ? static_cast<unsigned char>(text[place + offset]) : 0U; };
    bytes = 1;
    if (byte(0) < 0x20 || byte(0) == 0x7f) return byte(0) == 0 ? 0x100U : byte(0);
    bytes = 2;
    const unsigned two = (byte(0) & 0x1fU) << 6U | (byte(1) & 0x3fU);
    if ((byte(0) >> 5U) == 6 && (two < 0xa0 || two == 0x61c)) return two;
    bytes = 3;
    const unsigned three = (byte(0) & 0xfU) << 12U | (byte(1) & 0x3fU) << 6U | (byte(2) & 0x3fU);
    const bool reorders = three == 0x200e || three == 0x200f || (three >= 0x2028 && three <= 0x202e) || (three >= 0x2066 && three <= 0x2069);
    return (byte(0) >> 4U) == 14 && reorders ? three : 0;
}

// A message as one line for any terminal: control characters and overrides of direction escaped ("\x1b", "\u202e"), and cut
// where it is too long.
inline std::string one_line(const std::string& text) {
    std::string line;
    for (std::size_t place = 0; place < text.size();) {
        const bool inside = (static_cast<unsigned char>(text[place]) & 0xC0U) == 0x80U;
        if (line.size() >= kMostMessageBytes && !inside) return line + "...";
        std::size_t bytes = 1;
        const unsigned hidden = hidden_at(text, place, bytes);
        if (hidden == 0) {
            line += text[place++];
            continue;
        }
        const unsigned code = hidden & (bytes == 1 ? 0xffU : 0xffffU);
        line += code < 0x100 ? "\\x" : "\\u";
        for (int shift = code < 0x100 ? 4 : 12; shift >= 0; shift -= 4) line += "0123456789abcdef"[code >> static_cast<unsigned>(shift) & 15U];
        place += bytes;
    }
    return line;
}

class Error : public std::runtime_error {
public:
    Error(Status status, const std::string& message) : std::runtime_error(one_line(message)), status_(status) {}
    Status status() const noexcept { return status_; }

private:
    Status status_;
};

// Values as they are shown in messages.

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

template <typename Map>
std::vector<std::string> names_of(const Map& values) {
    std::vector<std::string> names;
    for (const auto& [name, value] : values) names.push_back(name);
    return names;
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
