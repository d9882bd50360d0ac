// The order in which patches are kept, one definition for the host and for a GPU.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PRTOOL_HOST_DEVICE __host__ __device__
#else
#define PRTOOL_HOST_DEVICE
#endif

namespace prtool {

// Whether a patch is kept before another one: the higher score, of equal ones the lower index, and NaN last.
PRTOOL_HOST_DEVICE inline bool precedes(float score, std::int64_t index, float other_score, std::int64_t other_index) {
    const bool invalid = score != score, other_invalid = other_score != other_score;
    if (invalid != other_invalid) return other_invalid;
    if (invalid || score == other_score) return index < other_index;
    return score > other_score;
}

// The place of a patch in that order, from 0.
PRTOOL_HOST_DEVICE inline std::int64_t rank_of(const float* scores, std::int64_t patches, std::int64_t index) {
    std::int64_t rank = 0;
    for (std::int64_t other = 0; other < patches; ++other) rank += precedes(scores[other], other, scores[index], index) ? 1 : 0;
    return rank;
}

// Which token of [prefix | patches | appended] becomes token `row` of [prefix | k kept | appended]; chosen: (k) patches.
PRTOOL_HOST_DEVICE inline std::int64_t source_row(std::int64_t row, const std::int64_t* chosen, std::int64_t k, std::int64_t patches, std::int64_t prefix) {
    if (row < prefix) return row;
    if (row < prefix + k) return prefix + chosen[row - prefix];
    return row - k + patches;
}

}  // namespace prtool
