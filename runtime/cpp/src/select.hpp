// Token selection: the only step between two graphs (docs/bundle-format.md, section 4).
#pragma once

#include <cstdint>
#include <vector>

#include "spec.hpp"

#if defined(__CUDACC__)
#define PRTOOL_HOST_DEVICE __host__ __device__
#else
#define PRTOOL_HOST_DEVICE
#endif

namespace prtool {

// The order in which patches are kept, one definition for the host and for a GPU.

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

// The k patches with the highest scores of each image, by falling score, of equal ones the lower index first.
// scores: (batch, patches). Returns (batch, k). Throws Error(Status::keep): k is out of range; Error(Status::shape): NaN.
std::vector<std::int64_t> select(const float* scores, std::int64_t batch, std::int64_t patches, std::int64_t k);

// The sequence with only the selected patches, in their order.
// tokens: (batch, prefix + patches + appended, width); indices: (batch, k); out: (batch, prefix + k + appended, width).
struct Sequence {
    std::int64_t batch = 0;
    std::int64_t patches = 0;
    std::int64_t width = 0;
    std::int64_t prefix = 0;
    std::int64_t appended = 0;
};
void gather(const float* tokens, const Sequence& sequence, const std::vector<std::int64_t>& indices, std::int64_t k, float* out);

}  // namespace prtool
