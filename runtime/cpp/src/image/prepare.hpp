// Upright 8-bit RGB to the encoder's float pixels, bit for bit as Python's prtool.runtime.images.preprocess.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "image/decode.hpp"
#include "spec.hpp"

namespace prtool {

// Rows of RGB that belong to the caller; row y begins at pixels + y * stride.
struct RgbView {
    const std::uint8_t* pixels = nullptr;
    std::int64_t width = 0;
    std::int64_t height = 0;
    std::int64_t stride = 0;  // bytes between rows, at least 3 * width
    Margins margins{};
};

// The least size of an image that is to be prepared: twice what it is resized to, so that the filter still has what it averages.
// What nearest-neighbour resizing takes from an image depends on its exact size, so there all pixels are needed.
std::pair<std::int64_t, std::int64_t> least_size(std::int64_t width, std::int64_t height, const Preprocess& spec);

// Writes (3, height, width) float32 to `out`. Throws Error(Status::shape): no pixels, or rows that overlap; Error(Status::memory).
// May be called from many threads at once.
void prepare(const RgbView& image, const Preprocess& spec, float* out);

}  // namespace prtool
