// Token selection: the only step between two graphs (docs/bundle-format.md, section 4).
#pragma once

#include <cstdint>
#include <vector>

#include "spec.hpp"

namespace prtool {

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
