// The kernels of select.cu on a real GPU, beside the host's selection: every index and every copied float is the same.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "cuda/kernels.hpp"
#include "select.hpp"

namespace {

constexpr int kSkipped = 77;  // ctest's SKIP_RETURN_CODE

template <typename Item>
class OnGpu {
public:
    explicit OnGpu(std::size_t count) : count_(count) { ok(cudaMalloc(&data_, count * sizeof(Item))); }
    explicit OnGpu(const std::vector<Item>& values) : OnGpu(values.size()) { ok(cudaMemcpy(data_, values.data(), count_ * sizeof(Item), cudaMemcpyHostToDevice)); }
    OnGpu(const OnGpu&) = delete;
    OnGpu& operator=(const OnGpu&) = delete;
    ~OnGpu() { cudaFree(data_); }

    Item* get() const { return data_; }
    std::vector<Item> host() const {
        std::vector<Item> values(count_);
        ok(cudaMemcpy(values.data(), data_, count_ * sizeof(Item), cudaMemcpyDeviceToHost));
        return values;
    }
    static void ok(cudaError_t status) {
        if (status == cudaSuccess) return;
        std::fprintf(stderr, "%s\n", cudaGetErrorString(status));
        std::exit(1);
    }

private:
    std::size_t count_;
    Item* data_ = nullptr;
};

// Scores with many ties, as half precision gives them, and both zeros.
std::vector<float> scores_of(std::mt19937& random, std::int64_t count, int levels) {
    std::vector<float> scores(static_cast<std::size_t>(count));
    for (float& score : scores) {
        const int level = static_cast<int>(random() % static_cast<unsigned>(levels)) - levels / 2;
        score = level == 0 && random() % 2 == 0 ? -0.0F : static_cast<float>(level) / 7.0F;
    }
    return scores;
}

bool same(const prtool::Sequence& size, std::int64_t k, int levels, std::mt19937& random) {
    const std::vector<float> scores = scores_of(random, size.batch * size.patches, levels);
    const std::int64_t length = size.prefix + size.patches + size.appended, kept = size.prefix + k + size.appended;
    std::vector<float> tokens(static_cast<std::size_t>(size.batch * length * size.width));
    for (float& token : tokens) token = static_cast<float>(random()) / 1e9F;

    const std::vector<std::int64_t> wanted = prtool::select(scores.data(), size.batch, size.patches, k);
    std::vector<float> wanted_tokens(static_cast<std::size_t>(size.batch * kept * size.width));
    prtool::gather(tokens.data(), size, wanted, k, wanted_tokens.data());

    const OnGpu<float> on_scores(scores), on_tokens(tokens), out(wanted_tokens.size());
    const OnGpu<std::int64_t> indices(wanted.size());
    const OnGpu<unsigned> place(std::vector<unsigned>{prtool::cuda::kAllValid});
    prtool::cuda::select(on_scores.get(), size.batch, size.patches, k, indices.get(), {place.get(), size.patches}, nullptr);
    prtool::cuda::gather(on_tokens.get(), size, indices.get(), k, out.get(), nullptr);
    OnGpu<float>::ok(cudaDeviceSynchronize());
    return indices.host() == wanted && out.host() == wanted_tokens && place.host()[0] == prtool::cuda::kAllValid;
}

bool finds_nan() {
    std::vector<float> scores(3 * 10, 1.0F);
    scores[17] = scores[25] = std::numeric_limits<float>::quiet_NaN();
    const OnGpu<float> on_scores(scores);
    const OnGpu<std::int64_t> indices(3 * 10);
    const OnGpu<unsigned> place(std::vector<unsigned>{prtool::cuda::kAllValid});
    prtool::cuda::select(on_scores.get(), 3, 10, 10, indices.get(), {place.get(), 10}, nullptr);
    OnGpu<float>::ok(cudaDeviceSynchronize());
    const std::vector<std::int64_t> order = indices.host();
    return place.host()[0] == 17 && order[19] == 7 && order[29] == 5;
}

}  // namespace

int main() {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus == 0) {
        std::puts("skipped: no CUDA device");
        return kSkipped;
    }
    std::mt19937 random(0);
    int cases = 0;
    for (const std::int64_t batch : {1, 3, 256}) {
        for (const std::int64_t patches : {1, 49, 196, 576, 1023}) {
            for (const std::int64_t k : {std::int64_t{1}, (patches + 1) / 2, patches}) {
                for (const std::int64_t width : {64, 65}) {
                    const prtool::Sequence size{batch, patches, width, 1, cases % 3};
                    if (!same(size, k, cases % 2 == 0 ? 5 : 100000, random)) {
                        std::fprintf(stderr, "differs: batch %ld, %ld patches, k %ld, width %ld\n", long(batch), long(patches), long(k), long(width));
                        return 1;
                    }
                    ++cases;
                }
            }
        }
    }
    // Rows too long for shared memory are ranked where they lie.
    if (!same({2, 9000, 4, 0, 0}, 100, 100000, random)) return std::fputs("differs: 9000 patches\n", stderr), 1;
    if (!finds_nan()) return std::fputs("a score that is not a number was not found\n", stderr), 1;
    std::printf("%d sizes: every index and token as on the host\n", cases + 1);
    return 0;
}
