// Ranks by counting: a patch's place is the number of patches before it. For the few hundred patches of an image that is less
// work than a sort, needs no memory, and gives the host's order, ties included, whatever order threads run in.
#include <algorithm>

#include "cuda/cuda.hpp"
#include "cuda/kernels.hpp"
#include "select.hpp"

namespace prtool::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr std::int64_t kSharedScores = 8192;  // 32 KiB, which every GPU gives a block; longer rows are read where they lie

__global__ void rank_patches(const float* all_scores, std::int64_t patches, std::int64_t k, std::int64_t* all_indices, Invalid invalid) {
    extern __shared__ float shared[];
    const std::int64_t image = blockIdx.x;
    const float* scores = all_scores + image * patches;
    std::int64_t* indices = all_indices + image * k;
    if (patches <= kSharedScores) {
        for (std::int64_t patch = threadIdx.x; patch < patches; patch += blockDim.x) shared[patch] = scores[patch];
        __syncthreads();
        scores = shared;
    }
    for (std::int64_t patch = threadIdx.x; patch < patches; patch += blockDim.x) {
        const float score = scores[patch];
        if (score != score) atomicMin(invalid.place, static_cast<unsigned>(image * invalid.row + patch));
        const std::int64_t rank = rank_of(scores, patches, patch);
        if (rank < k) indices[rank] = patch;
    }
}

// Item is float, or float4 where rows are whole multiples of it; width counts items. One block a row of `out`.
template <typename Item>
__global__ void copy_rows(const Item* tokens, Sequence sequence, const std::int64_t* indices, std::int64_t k, Item* out) {
    const std::int64_t rows = sequence.prefix + k + sequence.appended;
    const std::int64_t image = blockIdx.x / rows, row = blockIdx.x % rows;
    const std::int64_t length = sequence.prefix + sequence.patches + sequence.appended;
    const std::int64_t source = source_row(row, indices + image * k, k, sequence.patches, sequence.prefix);
    const Item* from = tokens + (image * length + source) * sequence.width;
    Item* to = out + (image * rows + row) * sequence.width;
    for (std::int64_t place = threadIdx.x; place < sequence.width; place += blockDim.x) to[place] = from[place];
}

template <typename Item>
void launch_copy(const float* tokens, Sequence sequence, const std::int64_t* indices, std::int64_t k, float* out, cudaStream_t stream) {
    sequence.width /= static_cast<std::int64_t>(sizeof(Item) / sizeof(float));
    const auto blocks = static_cast<unsigned>(sequence.batch * (sequence.prefix + k + sequence.appended));
    const auto threads = static_cast<unsigned>(std::min<std::int64_t>(kThreads, sequence.width));
    copy_rows<Item><<<blocks, threads, 0, stream>>>(reinterpret_cast<const Item*>(tokens), sequence, indices, k, reinterpret_cast<Item*>(out));
    check(cudaGetLastError(), "cannot gather tokens");
}

}  // namespace

void select(const float* scores, std::int64_t batch, std::int64_t patches, std::int64_t k, std::int64_t* indices, const Invalid& invalid, cudaStream_t stream) {
    const std::size_t shared = patches <= kSharedScores ? static_cast<std::size_t>(patches) * sizeof(float) : 0;
    rank_patches<<<static_cast<unsigned>(batch), kThreads, shared, stream>>>(scores, patches, k, indices, invalid);
    check(cudaGetLastError(), "cannot rank patches");
}

void gather(const float* tokens, const Sequence& sequence, const std::int64_t* indices, std::int64_t k, float* out, cudaStream_t stream) {
    if (sequence.width % 4 == 0) {
        launch_copy<float4>(tokens, sequence, indices, k, out, stream);
    } else {
        launch_copy<float>(tokens, sequence, indices, k, out, stream);
    }
}

}  // namespace prtool::cuda
