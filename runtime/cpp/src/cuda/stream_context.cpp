#include "cuda/stream_context.hpp"

#include <algorithm>

#include "cuda/kernels.hpp"
#include "errors.hpp"

namespace prtool::cuda {

namespace {

// Buffers of `floats` have the numbers that the pipeline gives; those of selections stand far above.
constexpr std::size_t kIndices = std::size_t{1} << 32;
// Every byte of kAllValid is this one.
constexpr int kAllValidByte = 0x7f;

float* floats_of(const DeviceMemory& memory) {
    return static_cast<float*>(memory.get());
}

float* floats_of(const PinnedMemory& memory) {
    return static_cast<float*>(memory.get());
}

}  // namespace

StreamContext::StreamContext(const Call& call, cudaStream_t stream)
    : call_(call),
      own_stream_(stream == nullptr ? new_stream() : nullptr),
      stream_(stream == nullptr ? own_stream_.get() : stream),
      host_pixels_(pinned_memory(call.pixels * sizeof(float), what("the pixels"))),
      host_embeddings_(pinned_memory(call.embeddings * sizeof(float), what("the embeddings"))),
      host_invalid_(pinned_memory(sizeof(unsigned), what("a flag"))),
      pixels_(device_memory(call.pixels * sizeof(float), what("the pixels"))),
      embeddings_(device_memory(call.embeddings * sizeof(float), what("the embeddings"))),
      invalid_(device_memory(sizeof(unsigned), what("a flag"))),
      before_(new_event()),
      after_(new_event()) {}

StreamContext::~StreamContext() {
    // Memory and contexts may still be in use; an error of that work was the call's to report.
    cudaStreamSynchronize(stream_);
}

void StreamContext::run(const float* pixels, float* embeddings, const Device::Steps& steps, bool records) {
    std::copy_n(pixels, call_.pixels, floats_of(host_pixels_));
    check(cudaMemcpyAsync(pixels_.get(), host_pixels_.get(), call_.pixels * sizeof(float), cudaMemcpyHostToDevice, stream_), "copies no pixels to the GPU");
    work(steps, records);
    check(cudaMemcpyAsync(host_embeddings_.get(), embeddings_.get(), call_.embeddings * sizeof(float), cudaMemcpyDeviceToHost, stream_),
          "copies no embeddings from the GPU");
    check(cudaMemcpyAsync(host_invalid_.get(), invalid_.get(), sizeof(unsigned), cudaMemcpyDeviceToHost, stream_), "copies no flag from the GPU");
    check(cudaStreamSynchronize(stream_), "failed in " + what("the work"));
    check_scores();
    std::copy_n(floats_of(host_embeddings_), call_.embeddings, embeddings);
}

void StreamContext::run_on_device(const float* pixels, float* embeddings, cudaStream_t caller, const Device::Steps& steps, bool records) {
    check(cudaEventRecord(before_.get(), caller), "does not mark the caller's stream");
    check(cudaStreamWaitEvent(stream_, before_.get(), 0), "does not wait for the caller's stream");
    check(cudaMemcpyAsync(pixels_.get(), pixels, call_.pixels * sizeof(float), cudaMemcpyDeviceToDevice, stream_), "copies no pixels");
    work(steps, records);
    check(cudaMemcpyAsync(embeddings, embeddings_.get(), call_.embeddings * sizeof(float), cudaMemcpyDeviceToDevice, stream_), "copies no embeddings");
    check(cudaEventRecord(after_.get(), stream_), "does not mark the end of the work");
    check(cudaStreamWaitEvent(caller, after_.get(), 0), "does not let the caller's stream wait");
}

float* StreamContext::floats(std::size_t number, std::size_t count) {
    return static_cast<float*>(buffer(number, count * sizeof(float), "tokens and scores"));
}

void StreamContext::keep_best(const float* scores, const float* tokens, const Sequence& sequence, std::int64_t k, float* kept) {
    patches_ = std::max(patches_, sequence.patches);
    const auto places = static_cast<std::size_t>(sequence.batch * k);
    auto* const indices = static_cast<std::int64_t*>(buffer(kIndices + static_cast<std::size_t>(sequence.patches), places * sizeof(std::int64_t), "indices"));
    select(scores, sequence.batch, sequence.patches, k, indices, {static_cast<unsigned*>(invalid_.get()), patches_}, stream_);
    gather(tokens, sequence, indices, k, kept, stream_);
}

void* StreamContext::buffer(std::size_t number, std::size_t bytes, const char* part) {
    Buffer& buffer = buffers_[number];
    if (buffer.bytes != bytes) buffer = {device_memory(bytes, what(part)), bytes};
    return buffer.memory.get();
}

std::string StreamContext::what(const char* part) const {
    return std::string(part) + " of a call of " + std::to_string(call_.batch) + " images, k = " + listed(call_.counts);
}

void StreamContext::enqueue(const Device::Steps& steps) {
    check(cudaMemsetAsync(invalid_.get(), kAllValidByte, sizeof(unsigned), stream_), "clears no flag");
    steps(*this, floats_of(pixels_), floats_of(embeddings_));
}

void StreamContext::work(const Device::Steps& steps, bool records) {
    if (records && ran_ && recorded_ == nullptr) record(steps);
    if (recorded_ != nullptr) {
        check(cudaGraphLaunch(recorded_.get(), stream_), "does not replay " + what("the recording"));
    } else {
        enqueue(steps);
    }
    ran_ = true;
}

// The steps have run once: their memory is there and their contexts are warm, for nothing can be allocated while CUDA records.
void StreamContext::record(const Device::Steps& steps) {
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "does not start to record");
    cudaGraph_t graph = nullptr;
    try {
        enqueue(steps);
    } catch (...) {
        if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess && graph != nullptr) cudaGraphDestroy(graph);
        cudaGetLastError();  // what the engine said is thrown; a later launch must not report it again
        throw;
    }
    const std::string problem = "does not record " + what("the steps") + "; open without recording";
    check(cudaStreamEndCapture(stream_, &graph), problem);
    cudaGraphExec_t made = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&made, graph, 0);
    cudaGraphDestroy(graph);
    check(status, problem);
    recorded_.reset(made);
}

void StreamContext::check_scores() const {
    const unsigned place = *static_cast<const unsigned*>(host_invalid_.get());
    if (place == kAllValid) return;
    const auto patches = static_cast<unsigned>(patches_);
    throw Error(Status::shape, "the score of image " + std::to_string(place / patches) + ", patch " + std::to_string(place % patches) +
                                   " is NaN, and NaN has no rank; look for NaN or infinity in the pixels, or for overflow in a graph of reduced precision");
}

}  // namespace prtool::cuda
