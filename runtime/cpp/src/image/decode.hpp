// Encoded images (JPEG, PNG) to upright 8-bit RGB, bit for bit as the Python package (Pillow) decodes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace prtool {

// Most pixels that are decoded; larger images are taken for decompression bombs.
inline constexpr std::int64_t kMaxPixels = 256'000'000;

// What of an image reaches beyond the picture at each side, in its pixels: a part of a JPEG's size can be no whole number.
struct Margins {
    double left = 0.0, top = 0.0, right = 0.0, bottom = 0.0;
};

// Upright RGB in tight rows: pixels.size() == 3 * width * height.
struct Rgb {
    std::int64_t width = 0;
    std::int64_t height = 0;
    std::vector<std::uint8_t> pixels;
    Margins margins{};
};

// The least width and height that are needed of an upright image of a width and height. Where a JPEG has them at 1/2, 1/4 or 1/8
// of its size, it is decoded so, to ceil(width / 2) x ceil(height / 2) pixels and so on; an empty function takes all pixels.
using LeastSize = std::function<std::pair<std::int64_t, std::int64_t>(std::int64_t width, std::int64_t height)>;

// `name` is for error messages. Throws Error(Status::image), or Error(Status::memory).
Rgb decode_image(const std::uint8_t* bytes, std::size_t size, const std::string& name, const LeastSize& least = {});

// Reads a whole file or pipe and decodes it. Throws Error(Status::image): it cannot be opened, is a device or a socket, is empty,
// damaged, of another format, or too large; or a pipe stays silent.
Rgb decode_file(const std::string& path, const LeastSize& least = {});

}  // namespace prtool
