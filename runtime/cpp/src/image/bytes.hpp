// Numbers inside the bytes of a file.
#pragma once

#include <cstdint>
#include <string_view>

namespace prtool {

enum class ByteOrder { big, little };

// The unsigned number that up to 8 bytes spell.
inline std::uint64_t number(std::string_view bytes, ByteOrder order = ByteOrder::big) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        const std::size_t at = order == ByteOrder::big ? i : bytes.size() - 1 - i;
        value = value << 8 | static_cast<std::uint8_t>(bytes[at]);
    }
    return value;
}

inline bool starts_with(std::string_view bytes, std::string_view prefix) {
    return bytes.substr(0, prefix.size()) == prefix;
}

}  // namespace prtool
