// From an ONNX file to a plan. Networks are strongly typed: the precision is that of the graph, and TF32 is off, so that float32
// is float32; as in the Python package.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "engines/trt/cache.hpp"
#include "engines/trt/library.hpp"
#include "engines/trt/shapes.hpp"

namespace prtool::trt::PRTOOL_TRT_LIBRARY {

// The GPU that a build is for; a key has the words of `kNoDevice` without one.
struct Target {
    std::string device = kNoDevice;
    std::string compute_capability = kNoDevice;
    std::string driver = kNoDevice;
};

// One graph to build: its ONNX file, its declared inputs, and how.
struct Order {
    std::string path;
    std::vector<TensorSpec> inputs;
    std::string precision;
    Recipe recipe;
};

// The key of an order in a cache. Throws Error(Status::engine): there is no such file.
EngineKey key_of(const Library& library, const Order& order, const Target& target);

// Builds the plan. timing_file: where timings of kernels are kept, for a library that takes some.
// Throws Error(Status::engine_unavailable): the library builds only with a GPU and finds none;
// Error(Status::engine): the file is damaged, or the library refuses it; the message has every reason that it gives.
std::string build_plan(Library& library, const Order& order, const std::filesystem::path& timing_file);

// The plan of an order, from the cache or built now. Throws what `build_plan` and EngineCache::obtain throw.
CachedEngine obtain_plan(Library& library, const Order& order, const Target& target, const EngineCache& cache);

}  // namespace prtool::trt::PRTOOL_TRT_LIBRARY
