// zlib's decompression, for the pixels and texts of a PNG.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#define ZLIB_CONST  // its input pointer points to const
#include <zlib.h>

namespace prtool {

// Pillow's bound on one compressed text.
inline constexpr std::size_t kMaxInflatedBytes = 1'048'576;

// A zlib stream that is closed with its owner.
class Inflater {
public:
    Inflater();
    ~Inflater();
    Inflater(const Inflater&) = delete;
    Inflater& operator=(const Inflater&) = delete;

    // What is read from here on; it stays the caller's.
    void feed(std::string_view input);
    std::size_t unread() const { return stream_.avail_in; }

    // Fills `out` as far as what was fed suffices. Gives zlib's status, and how many bytes were written.
    int write(std::uint8_t* out, std::size_t size, std::size_t& written);

private:
    z_stream stream_{};
};

// All of a short compressed text; none if it is damaged. Throws Refusal where it is longer than kMaxInflatedBytes.
std::optional<std::string> inflate_text(std::string_view compressed);

}  // namespace prtool
