#include "image/kernels.hpp"

#include <algorithm>

namespace prtool {

namespace {

// Sums are unsigned because they may wrap around, which PIL's do in the same way.
constexpr std::uint32_t kHalf = 1U << (kWeightBits - 1);

std::uint8_t rounded(std::uint32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(static_cast<std::int32_t>(sum) >> kWeightBits, 0, 255));
}

void across(const RowGroup& rows, const Taps& taps) { across_from(0, rows, taps); }

void down(const RowStack& stack, std::int64_t bytes, std::uint8_t* out) { down_from(0, stack, bytes, out); }

}  // namespace

void across_from(std::int64_t pixel, const RowGroup& rows, const Taps& taps) {
    for (; pixel < taps.pixels(); ++pixel) {
        const std::int32_t* weights = taps.weights_of(pixel);
        for (std::int64_t row = 0; row < kRowsAtOnce; ++row) {
            const std::uint8_t* in = rows.in[row] + 3 * (taps.first[pixel] - taps.begin);
            std::uint32_t red = kHalf, green = kHalf, blue = kHalf;
            for (std::int32_t tap = 0; tap < taps.count[pixel]; ++tap, in += 3) {
                const auto weight = static_cast<std::uint32_t>(weights[tap]);
                red += in[0] * weight;
                green += in[1] * weight;
                blue += in[2] * weight;
            }
            std::uint8_t* out = rows.out[row] + 3 * pixel;
            out[0] = rounded(red);
            out[1] = rounded(green);
            out[2] = rounded(blue);
        }
    }
}

void down_from(std::int64_t byte, const RowStack& stack, std::int64_t bytes, std::uint8_t* out) {
    constexpr std::int64_t block = 64;  // few enough sums to stay near the processor while all rows are added
    for (std::int64_t begin = byte; begin < bytes; begin += block) {
        std::array<std::uint32_t, block> sums;
        sums.fill(kHalf);
        const std::int64_t size = std::min(block, bytes - begin);
        for (std::int32_t tap = 0; tap < stack.count; ++tap) {
            const std::uint8_t* in = stack.rows + tap * stack.stride + begin;
            const auto weight = static_cast<std::uint32_t>(stack.weights[tap]);
            for (std::int64_t i = 0; i < size; ++i) sums[i] += in[i] * weight;
        }
        std::transform(sums.begin(), sums.begin() + size, out + begin, rounded);
    }
}

const Kernels& portable_kernels() {
    static constexpr Kernels kernels{across, down};
    return kernels;
}

const Kernels& best_kernels() {
    static const Kernels* const avx2 = avx2_kernels();
    return avx2 != nullptr ? *avx2 : portable_kernels();
}

}  // namespace prtool
