// What an engine is: a library that loads a graph and runs it on named tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device.hpp"
#include "manifest.hpp"

namespace prtool {

enum class ElementType { float32, int64 };

// A tensor, row-major; `data` is only written where it is an output. Floats lie where the engine's graphs work, integers (a
// graph's input `k`) in host memory.
struct TensorRef {
    const char* name;
    ElementType type;
    std::vector<std::int64_t> shape;
    void* data;
};

inline TensorRef input_of(const char* name, const float* data, std::vector<std::int64_t> shape) {
    return {name, ElementType::float32, std::move(shape), const_cast<float*>(data)};
}
inline TensorRef input_of(const char* name, const std::int64_t* data, std::vector<std::int64_t> shape) {
    return {name, ElementType::int64, std::move(shape), const_cast<std::int64_t*>(data)};
}
inline TensorRef output_of(const char* name, float* data, std::vector<std::int64_t> shape) {
    return {name, ElementType::float32, std::move(shape), data};
}

// One loaded graph. `run` may be called from many threads at once.
class Graph {
public:
    virtual ~Graph() = default;

    // Every output of the graph that is wanted has its memory and exact shape. On a GPU the work is put on `work.stream()`.
    // Throws Error(Status::engine): the engine failed; the message has its reason.
    // Throws Error(Status::shape): the engine was not built for these shapes.
    virtual void run(const std::vector<TensorRef>& inputs, const std::vector<TensorRef>& outputs, Work& work) = 0;
};

// What really runs.
struct EngineInfo {
    std::string name;
    std::string version;
    std::string device;  // human-readable: "CPU, 2 threads"
};

struct EngineSettings {
    std::string precision = "fp32";
    int threads = 0;  // 0 takes what the machine grants this process
    bool spinning = true;
    int device = 0;            // number of the GPU
    bool cuda_graphs = false;  // record the work of each size, and replay it
    std::string cache;         // folder of built engines; "" takes the user's cache folder, as the Python package does
};

class Engine {
public:
    virtual ~Engine() = default;
    virtual const EngineInfo& info() const = 0;
    // The precision of the graphs that it runs for the requested one.
    virtual std::string graph_precision() const = 0;
    virtual Device& device() = 0;
    // Throws Error(Status::engine): the file is damaged, or the engine rejects it.
    virtual std::unique_ptr<Graph> load(const std::string& path, const GraphSpec& spec) = 0;
};

// Throws Error(Status::config): no engine has that name, or it cannot compute so;
// Error(Status::engine_unavailable): this library was built without it, or it finds no device.
std::unique_ptr<Engine> make_engine(const std::string& name, const EngineSettings& settings);

// Names of the engines that this library was built with, in the order of preference.
std::vector<std::string> built_engines();

// CPUs that this process may use, which can be fewer than the machine has.
int granted_cpus();

// Each is defined where this library was built with it.
std::unique_ptr<Engine> make_ort(const EngineSettings& settings);
std::unique_ptr<Engine> make_ort_cuda(const EngineSettings& settings);
std::unique_ptr<Engine> make_openvino(const EngineSettings& settings);
std::unique_ptr<Engine> make_trt(const EngineSettings& settings);
std::unique_ptr<Engine> make_trt_rtx(const EngineSettings& settings);

}  // namespace prtool
