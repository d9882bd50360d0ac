#include "cuda/cuda.hpp"

#include <dlfcn.h>

#include <array>

#include "errors.hpp"

namespace prtool::cuda {

namespace {

constexpr const char* kAdvice = "; check the driver with nvidia-smi";

[[noreturn]] void no_gpu(const std::string& problem, cudaError_t status) {
    throw Error(Status::engine_unavailable, problem + " (error " + std::to_string(status) + ": " + cudaGetErrorString(status) + ")" + kAdvice);
}

int attribute(cudaDeviceAttr wanted, int device) {
    int value = 0;
    const cudaError_t status = cudaDeviceGetAttribute(&value, wanted, device);
    if (status != cudaSuccess) no_gpu("the NVIDIA driver does not describe device " + std::to_string(device), status);
    return value;
}

// The driver's version, and the newest CUDA that it runs. Some systems (Jetson, some containers) have no management library.
std::string driver_version() {
    int newest = 0;
    const cudaError_t status = cudaDriverGetVersion(&newest);
    if (status != cudaSuccess) no_gpu("the NVIDIA driver has no version", status);
    const std::string runs = "CUDA " + std::to_string(newest / 1000) + "." + std::to_string(newest % 1000 / 10);
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return runs;
    const auto start = reinterpret_cast<int (*)()>(dlsym(library, "nvmlInit_v2"));
    const auto version = reinterpret_cast<int (*)(char*, unsigned)>(dlsym(library, "nvmlSystemGetDriverVersion"));
    std::array<char, 96> text{};
    const bool known = start != nullptr && version != nullptr && start() == 0 && version(text.data(), text.size()) == 0;
    return known ? std::string(text.data()) + ", " + runs : runs;
}

}  // namespace

void check(cudaError_t status, const std::string& problem) {
    if (status == cudaSuccess) return;
    const Status kind = status == cudaErrorMemoryAllocation ? Status::memory : Status::engine;
    throw Error(kind, "CUDA " + problem + ": " + cudaGetErrorString(status));
}

Gpu gpu(int device) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) no_gpu("the NVIDIA driver lists no GPU", status);
    if (device < 0 || device >= count) {
        throw Error(Status::engine_unavailable, "device = " + std::to_string(device) + ", but the NVIDIA driver lists " + std::to_string(count) +
                                                    " (from 0); CUDA_VISIBLE_DEVICES may hide others");
    }
    cudaDeviceProp properties{};
    const cudaError_t asked = cudaGetDeviceProperties(&properties, device);
    if (asked != cudaSuccess) no_gpu("the NVIDIA driver does not describe device " + std::to_string(device), asked);
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, device), minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
    return {properties.name, std::to_string(major) + "." + std::to_string(minor), driver_version()};
}

DeviceScope::DeviceScope(int device) {
    check(cudaGetDevice(&before_), "has no current GPU");
    check(cudaSetDevice(device), "cannot use GPU " + std::to_string(device));
}

DeviceScope::~DeviceScope() {
    cudaSetDevice(before_);
}

DeviceMemory device_memory(std::size_t bytes, const std::string& what) {
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, bytes);
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();  // it is reported here, and not once more by a later launch
        std::size_t free = 0, total = 0;
        cudaMemGetInfo(&free, &total);
        throw Error(Status::memory, "the GPU has no " + std::to_string(bytes >> 20) + " MiB for " + what + ", about " + std::to_string(free >> 20) +
                                        " MiB are free; give fewer images at once");
    }
    check(status, "gives no memory for " + what);
    return DeviceMemory(memory);
}

PinnedMemory pinned_memory(std::size_t bytes, const std::string& what) {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, bytes), "pins no host memory for " + what + " (" + std::to_string(bytes >> 20) + " MiB)");
    return PinnedMemory(memory);
}

Stream new_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "makes no stream");
    return Stream(stream);
}

Event new_event() {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "makes no event");
    return Event(event);
}

}  // namespace prtool::cuda
