// The Device of engines that work on an NVIDIA GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "device.hpp"

namespace prtool::cuda {

struct DeviceOptions {
    const char* engine = "";  // its name, for messages
    bool records = false;     // each call of sizes that came before is replayed as one CUDA graph
    bool one_stream = false;  // the graphs work on one stream, so that calls take turns; else calls run side by side
};

class GpuDevice : public Device {
public:
    // The stream of every call where there is only one; null otherwise.
    virtual cudaStream_t stream() const = 0;
};

// Throws Error(Status::engine_unavailable): no driver, or no GPU of that number.
std::unique_ptr<GpuDevice> make_device(int gpu, const DeviceOptions& options);

}  // namespace prtool::cuda
