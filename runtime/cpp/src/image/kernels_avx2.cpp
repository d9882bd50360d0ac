#include "image/kernels.hpp"

#if defined(__x86_64__)

#include <cstring>

#include <immintrin.h>

// Compiled for AVX2 whatever the rest is compiled for.
#define PRTOOL_AVX2 __attribute__((target("avx2")))

namespace prtool {

namespace {

// A weight has more than 16 bits, which is what the fast product takes (vpmaddwd: 16 products, pairs of them summed).
// So it is split into a low part, read as signed, and a high part that makes up for the sign; the two sums meet at the
// end. Everything is exact modulo 2^32, as the plain sum is.
struct Halves {
    __m256i low, high;
};

PRTOOL_AVX2 inline __m128i load(const void* address) { return _mm_loadu_si128(static_cast<const __m128i*>(address)); }

// `pairs` says which bytes of `weights` make the low parts; the high ones follow two bytes later.
PRTOOL_AVX2 inline Halves split(__m256i weights, __m256i pairs) {
    const __m256i low = _mm256_shuffle_epi8(weights, pairs);
    const __m256i high = _mm256_shuffle_epi8(weights, _mm256_add_epi8(pairs, _mm256_set1_epi8(2)));
    return {low, _mm256_sub_epi16(high, _mm256_srai_epi16(low, 15))};
}

PRTOOL_AVX2 inline void add_products(Halves& sums, __m256i values, const Halves& weights) {
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(values, weights.low));
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(values, weights.high));
}

PRTOOL_AVX2 inline __m256i total(const Halves& sums) {
    return _mm256_add_epi32(sums.low, _mm256_slli_epi32(sums.high, 16));
}

PRTOOL_AVX2 inline __m256i rounded(const Halves& sums) {
    const __m256i half = _mm256_set1_epi32(1 << (kWeightBits - 1));
    return _mm256_srai_epi32(_mm256_add_epi32(total(sums), half), kWeightBits);
}

// Adds up the halves of the register, and rounds.
PRTOOL_AVX2 inline void store_pixel(const Halves& sums, std::uint8_t* out) {
    const __m256i both = total(sums);
    const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    const __m128i half = _mm_set1_epi32(1 << (kWeightBits - 1));
    const __m128i words = _mm_srai_epi32(_mm_add_epi32(sum, half), kWeightBits);
    const __m128i bytes = _mm_packus_epi16(_mm_packs_epi32(words, words), words);
    const std::int32_t pixel = _mm_cvtsi128_si32(bytes);
    std::memcpy(out, &pixel, 3);
}

// Pixels from the left whose taps can be loaded by fours, 16 bytes a time, without reading beyond the row.
std::int64_t pixels_by_fours(const Taps& taps) {
    const auto reaches_beyond = [&](std::int64_t pixel) {
        const std::int64_t end = taps.first[pixel] + (taps.count[pixel] + 3) / 4 * 4;
        return 3 * end + 4 > 3 * taps.end;
    };
    // Not from the right: of two neighbours the left one can have more taps, and reach further.
    std::int64_t pixels = 0;
    while (pixels < taps.pixels() && !reaches_beyond(pixels)) ++pixels;
    return pixels;
}

// Four taps a step: the lower half of a register takes the first two pixels, the upper half the other two.
PRTOOL_AVX2 void across(const RowGroup& rows, const Taps& taps) {
    constexpr char no = -1;  // makes a zero
    const __m256i rgb_pairs = _mm256_setr_epi8(0, no, 3, no, 1, no, 4, no, 2, no, 5, no, no, no, no, no,  //
                                               6, no, 9, no, 7, no, 10, no, 8, no, 11, no, no, no, no, no);
    const __m256i weight_pairs = _mm256_setr_epi8(0, 1, 4, 5, 0, 1, 4, 5, 0, 1, 4, 5, 0, 1, 4, 5,  //
                                                  8, 9, 12, 13, 8, 9, 12, 13, 8, 9, 12, 13, 8, 9, 12, 13);
    const std::int64_t pixels = pixels_by_fours(taps);
    for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
        const std::int64_t offset = 3 * (taps.first[pixel] - taps.begin);
        const std::int32_t* weights = taps.weights_of(pixel);
        std::array<Halves, kRowsAtOnce> sums{};
        for (std::int32_t tap = 0; tap < taps.count[pixel]; tap += 4) {
            const Halves four = split(_mm256_broadcastsi128_si256(load(weights + tap)), weight_pairs);
            for (std::int64_t row = 0; row < kRowsAtOnce; ++row) {
                const __m256i twice = _mm256_broadcastsi128_si256(load(rows.in[row] + offset + 3 * tap));
                add_products(sums[row], _mm256_shuffle_epi8(twice, rgb_pairs), four);
            }
        }
        for (std::int64_t row = 0; row < kRowsAtOnce; ++row) store_pixel(sums[row], rows.out[row] + 3 * pixel);
    }
    across_from(pixels, rows, taps);
}

// 32 bytes of each row, two rows a step.
PRTOOL_AVX2 inline void down_32(const RowStack& stack, std::int64_t begin, std::uint8_t* out) {
    const __m256i weight_pairs = _mm256_set1_epi32(0x05040100);
    std::array<Halves, 4> sums{};
    for (std::int32_t tap = 0; tap < stack.count; tap += 2) {
        const std::uint8_t* upper = stack.rows + tap * stack.stride + begin;
        const std::uint8_t* lower = tap + 1 < stack.count ? upper + stack.stride : upper;  // then with a weight of 0
        std::int64_t weights;
        std::memcpy(&weights, stack.weights + tap, sizeof weights);
        const Halves two = split(_mm256_set1_epi64x(weights), weight_pairs);
        for (std::size_t part = 0; part < 2; ++part) {
            const __m256i above = _mm256_cvtepu8_epi16(load(upper + 16 * part));
            const __m256i below = _mm256_cvtepu8_epi16(load(lower + 16 * part));
            add_products(sums[2 * part], _mm256_unpacklo_epi16(above, below), two);
            add_products(sums[2 * part + 1], _mm256_unpackhi_epi16(above, below), two);
        }
    }
    const __m256i first = _mm256_packs_epi32(rounded(sums[0]), rounded(sums[1]));
    const __m256i second = _mm256_packs_epi32(rounded(sums[2]), rounded(sums[3]));
    // Packing goes by halves of registers, so that the four parts of 8 bytes come out in the order 0, 2, 1, 3.
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0b11011000);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + begin), bytes);
}

PRTOOL_AVX2 void down(const RowStack& stack, std::int64_t bytes, std::uint8_t* out) {
    std::int64_t begin = 0;
    for (; begin + 32 <= bytes; begin += 32) down_32(stack, begin, out);
    down_from(begin, stack, bytes, out);
}

}  // namespace

const Kernels* avx2_kernels() {
    static constexpr Kernels kernels{across, down};
    return __builtin_cpu_supports("avx2") ? &kernels : nullptr;
}

}  // namespace prtool

#else

namespace prtool {

const Kernels* avx2_kernels() { return nullptr; }

}  // namespace prtool

#endif
