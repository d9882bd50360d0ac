// How much memory an image may take while it is decoded, known from its header, by the Python package's rules: both read the same files.
#pragma once

#include <cstdint>

namespace prtool {

// Most bytes that Pillow may take to decode an image and make it RGB.
inline constexpr std::int64_t kMaxBytes = 1'700'000'000;

// How Pillow holds the image.
struct Held {
    const char* mode = "RGB";
    int pixel_bytes = 4;
    std::int64_t beside = 0;  // bytes a pixel that its decoder holds next to it
};

// What decoding it takes; with the turned copy, which follows, where `turned`. Throws Refusal: more than kMaxBytes.
void check_memory(std::int64_t width, std::int64_t height, const Held& held, bool turned);

}  // namespace prtool
