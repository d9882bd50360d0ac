#include "image/decoding.hpp"

#include <algorithm>
#include <cstring>
#include <utility>


namespace prtool {

namespace {

// Rows and columns of a block that are turned together: written one after the other, a whole row of a turned image
// reads a cache line a pixel, 4 times slower for 12 megapixels.
constexpr std::int64_t kBlock = 64;

// Where the turned image finds its pixels: source + y * down + x * across.
struct Steps {
    const std::uint8_t* source;
    std::int64_t across, down;  // in bytes
};

void copy_block(const Steps& steps, std::int64_t left, std::int64_t top, Rgb& turned) {
    const std::int64_t right = std::min(left + kBlock, turned.width);
    const std::int64_t bottom = std::min(top + kBlock, turned.height);
    for (std::int64_t y = top; y < bottom; ++y) {
        const std::uint8_t* from = steps.source + y * steps.down + left * steps.across;
        std::uint8_t* to = turned.pixels.data() + 3 * (y * turned.width + left);
        for (std::int64_t x = left; x < right; ++x, from += steps.across, to += 3) std::memcpy(to, from, 3);
    }
}

}  // namespace

Rgb upright(Rgb image, int orientation) {
    if (orientation == 1) return image;
    const bool mirrored = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool upside_down = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const bool transposed = orientation >= 5;
    const std::int64_t column = mirrored ? -3 : 3;
    const std::int64_t row = 3 * (upside_down ? -image.width : image.width);
    const std::int64_t first_column = mirrored ? image.width - 1 : 0;
    const std::int64_t first_row = upside_down ? image.height - 1 : 0;

    Rgb turned = transposed ? allocate(image.height, image.width) : allocate(image.width, image.height);
    const std::uint8_t* source = image.pixels.data() + 3 * (first_row * image.width + first_column);
    const Steps steps{source, transposed ? row : column, transposed ? column : row};
    for (std::int64_t top = 0; top < turned.height; top += kBlock) {
        for (std::int64_t left = 0; left < turned.width; left += kBlock) copy_block(steps, left, top, turned);
    }
    return turned;
}

}  // namespace prtool
