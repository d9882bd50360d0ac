// Encoded images (JPEG, PNG) to upright 8-bit RGB, bit for bit as the Python package (Pillow) decodes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace prtool {

// Most pixels that are decoded; larger images are taken for decompression bombs.
inline constexpr std::int64_t kMaxPixels = 256'000'000;

// Upright RGB in tight rows: pixels.size() == 3 * width * height.
struct Rgb {
    std::int64_t width = 0;
    std::int64_t height = 0;
    std::vector<std::uint8_t> pixels;
};

// `name` is for error messages. Throws Error(Status::image), or Error(Status::memory).
Rgb decode_image(const std::uint8_t* bytes, std::size_t size, const std::string& name);

// Reads a whole file or pipe and decodes it. Throws Error(Status::image): it cannot be opened, is a device or a socket, is empty,
// damaged, of another format, or too large; or a pipe stays silent.
Rgb decode_file(const std::string& path);

}  // namespace prtool
