// The weights of the resize, and its inner loops: one set for each instruction set, and all give the same bits.
#pragma once

#include <array>
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

// Rows that go through `across` together, so that weights are loaded once for all of them.
inline constexpr std::int64_t kRowsAtOnce = 4;

struct RowGroup {
    std::array<const std::uint8_t*, kRowsAtOnce> in;  // each begins with the source pixel `taps.begin`
    std::array<std::uint8_t*, kRowsAtOnce> out;
};

// Rows of the source that become one row: `count` of them, `stride` bytes apart, each with its weight.
struct RowStack {
    const std::uint8_t* rows;
    std::int64_t stride;
    const std::int32_t* weights;
    std::int32_t count;
};

struct Kernels {
    // Rows of RGB to shorter or longer rows of RGB.
    void (*across)(const RowGroup& rows, const Taps& taps);
    // A weighted sum of rows, for the bytes [0, bytes).
    void (*down)(const RowStack& stack, std::int64_t bytes, std::uint8_t* out);
};

const Kernels& portable_kernels();

// None on other machines than x86-64, and where the processor has no AVX2.
const Kernels* avx2_kernels();

// The fastest that this processor runs.
const Kernels& best_kernels();

// The portable loops from one pixel or byte on, for what is left over where registers do not fit.
void across_from(std::int64_t pixel, const RowGroup& rows, const Taps& taps);
void down_from(std::int64_t byte, const RowStack& stack, std::int64_t bytes, std::uint8_t* out);

}  // namespace prtool
