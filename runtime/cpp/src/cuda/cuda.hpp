// CUDA's runtime with errors as exceptions, and memory, streams and recordings that free themselves.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

namespace prtool::cuda {

// Throws Error(Status::engine | memory): "CUDA <problem>: <its reason>".
void check(cudaError_t status, const std::string& problem);

// A GPU as the driver names it; the Python package names it the same.
struct Gpu {
    std::string name;
    std::string compute_capability;  // "9.0"
    std::string driver;              // "580.65.06, CUDA 13.0"

    std::string words() const { return name + " (compute capability " + compute_capability + ", driver " + driver + ")"; }
};

// Throws Error(Status::engine_unavailable): no driver, or no GPU of that number.
Gpu gpu(int device);

// The calling thread's current GPU, until the end of the scope.
class DeviceScope {
public:
    explicit DeviceScope(int device);
    ~DeviceScope();
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

private:
    int before_ = 0;
};

struct FreeDevice {
    void operator()(void* memory) const { cudaFree(memory); }
};
struct FreePinned {
    void operator()(void* memory) const { cudaFreeHost(memory); }
};
struct DestroyStream {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
struct DestroyEvent {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
struct DestroyGraph {
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
using DeviceMemory = std::unique_ptr<void, FreeDevice>;  // of the GPU that was current when it was made
using PinnedMemory = std::unique_ptr<void, FreePinned>;  // of the host, for copies beside other work
using Stream = std::unique_ptr<CUstream_st, DestroyStream>;
using Event = std::unique_ptr<CUevent_st, DestroyEvent>;
using GraphExec = std::unique_ptr<CUgraphExec_st, DestroyGraph>;

// `what` stands in the message: "the scratch memory of fused.onnx". Throws Error(Status::memory).
DeviceMemory device_memory(std::size_t bytes, const std::string& what);
PinnedMemory pinned_memory(std::size_t bytes, const std::string& what);
Stream new_stream();  // it does not wait for the default stream
Event new_event();

}  // namespace prtool::cuda
