// PIL's antialiased resize of 8-bit RGB, bit for bit, for any part of the resized image.
#pragma once

#include <cstdint>

#include "image/prepare.hpp"
#include "spec.hpp"

namespace prtool {

// What of the source is resized, in its pixels. PIL rounds these to float32, and the rounding shows in the result.
struct Box {
    float left, top, right, bottom;
};

// A rectangle of the resized image.
struct Window {
    std::int64_t left, top, width, height;
};

struct Scaling {
    std::int64_t width, height;  // of the resized image
    Interpolation filter;
    Box box;
    Window window;  // what of the resized image is computed
};

// Writes the window to `out`, whose rows begin `stride` bytes apart. Throws std::bad_alloc.
void resize(const RgbView& image, const Scaling& scaling, std::uint8_t* out, std::int64_t stride);

}  // namespace prtool
