// The weights of PIL's antialiasing filters, as 8-bit images take them.
#pragma once

#include <cstdint>
#include <vector>

#include "spec.hpp"

namespace prtool {

// Fractional bits of a weight.
inline constexpr int kWeightBits = 22;

// One direction of a resize: the part [begin, end) of `source` pixels becomes `target` pixels.
struct Axis {
    std::int64_t source;
    float begin, end;
    std::int64_t target;
};

// For each pixel that is computed: which pixels of the source it is a weighted sum of.
struct Taps {
    std::int64_t stride = 0;  // weights a pixel, a multiple of 4; those beyond `count` are 0
    std::vector<std::int32_t> first;
    std::vector<std::int32_t> count;
    std::vector<std::int32_t> weights;
    std::int64_t begin = 0;  // the source pixels that are used at all: [begin, end)
    std::int64_t end = 0;

    std::int64_t pixels() const { return static_cast<std::int64_t>(first.size()); }
    const std::int32_t* weights_of(std::int64_t pixel) const { return weights.data() + pixel * stride; }
};

// Of the pixels [first, first + count) of the target. Throws std::bad_alloc where PIL has not enough memory.
Taps make_taps(const Axis& axis, Interpolation filter, std::int64_t first, std::int64_t count);

}  // namespace prtool
