// Where ONNX Runtime's TensorRT provider keeps the engines of one graph, which it loads unseen; the Python package has the same.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "cuda/cuda.hpp"
#include "engine.hpp"
#include "engines/trt/lock.hpp"

namespace prtool {

class OrtTensorRtCache {
public:
    OrtTensorRtCache(const std::string& path, const GraphSpec& spec, const Profile& profile, const EngineSettings& settings, const cuda::Gpu& gpu);

    // Options of the provider. No precision flag is among them: without one it makes strongly typed networks, whose arithmetic is
    // what the graph says.
    const std::map<std::string, std::string>& settings() const { return settings_; }

    // The right to load or build here, after every file was found to be what an earlier build left.
    // Throws Error(Status::engine): one is truncated, altered or unknown; Error(Status::storage): the folder cannot be made.
    std::unique_ptr<trt::BuildLock> checked() const;

    // Writes down what is there now. Throws Error(Status::storage).
    void keep_digests() const;

private:
    std::filesystem::path folder_;
    std::map<std::string, std::string> settings_;
};

}  // namespace prtool
