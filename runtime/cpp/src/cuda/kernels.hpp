// Selection on a GPU: the counterpart of select.hpp, put on a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "select.hpp"  // of the host, whose Sequence it shares

namespace prtool::cuda {

// What `invalid` holds while no score is NaN.
inline constexpr unsigned kAllValid = 0x7f7f7f7fU;

// The k patches of the highest scores of each image in the order of `select`; NaN ranks last.
// scores: (batch, patches); indices: (batch, k); *invalid.place becomes the least image * invalid.row + patch whose score is NaN.
struct Invalid {
    unsigned* place = nullptr;
    std::int64_t row = 0;  // at least as many as there are patches
};
void select(const float* scores, std::int64_t batch, std::int64_t patches, std::int64_t k, std::int64_t* indices, const Invalid& invalid, cudaStream_t stream);

// As prtool::gather: tokens (batch, prefix + patches + appended, width), indices (batch, k), out (batch, prefix + k + appended, width).
void gather(const float* tokens, const Sequence& sequence, const std::int64_t* indices, std::int64_t k, float* out, cudaStream_t stream);

}  // namespace prtool::cuda
