// Every error that the library raises on purpose: a status code and a message that says what was wrong,
// which value it had, what was possible, and what to do.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

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

// A message as one line for any terminal: control characters escaped ("\x1b"), and cut where it is too long.
inline std::string one_line(const std::string& text) {
    std::string line;
    for (const char letter : text) {
        const auto byte = static_cast<unsigned char>(letter);
        if (line.size() >= kMostMessageBytes && (byte & 0xC0U) != 0x80U) return line + "...";
        if (byte >= 0x20 && byte != 0x7f) {
            line += letter;
        } else {
            line += std::string("\\x") + "0123456789abcdef"[byte >> 4] + "0123456789abcdef"[byte & 15];
        }
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

}  // namespace prtool
