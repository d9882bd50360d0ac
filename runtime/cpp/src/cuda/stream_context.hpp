// One context of a GPU: a stream, and the memory of calls of one size, which follow each other there.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "cuda/cuda.hpp"
#include "device.hpp"

namespace prtool::cuda {

// Used by one call at a time, from a thread whose current GPU is the context's.
class StreamContext final : public Work {
public:
    // stream: to work on, which outlives the context; null makes one of its own.
    StreamContext(const Call& call, cudaStream_t stream);
    ~StreamContext() override;

    const Call& call() const { return call_; }

    // See Device; `records` replays the steps as one CUDA graph from the second call on.
    void run(const float* pixels, float* embeddings, const Device::Steps& steps, bool records);
    void run_on_device(const float* pixels, float* embeddings, cudaStream_t caller, const Device::Steps& steps, bool records);

    float* floats(std::size_t number, std::size_t count) override;
    void keep_best(const float* scores, const float* tokens, const Sequence& sequence, std::int64_t k, float* kept) override;
    void* stream() const override { return stream_; }

private:
    struct Buffer {
        DeviceMemory memory;
        std::size_t bytes = 0;
    };

    void* buffer(std::size_t number, std::size_t bytes, const char* what);
    std::string what(const char* part) const;
    void enqueue(const Device::Steps& steps);
    void work(const Device::Steps& steps, bool records);
    void record(const Device::Steps& steps);
    void check_scores() const;

    Call call_;
    Stream own_stream_;
    cudaStream_t stream_;
    PinnedMemory host_pixels_;
    PinnedMemory host_embeddings_;
    PinnedMemory host_invalid_;
    DeviceMemory pixels_;
    DeviceMemory embeddings_;
    DeviceMemory invalid_;
    Event before_;
    Event after_;
    std::map<std::size_t, Buffer> buffers_;
    std::int64_t patches_ = 0;  // of the first selection, which has the most
    bool ran_ = false;
    GraphExec recorded_;
};

}  // namespace prtool::cuda
