// One of the TensorRT libraries, loaded when it is first used: libprtool is not linked to it, so that it runs without.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "engines/trt/api.hpp"
#include "errors.hpp"

namespace prtool::trt::PRTOOL_TRT_LIBRARY {

// Its name in `make_engine`, for people, and of its Python module, which is in the records of engines.
#if defined(PRTOOL_TRT_RTX)
inline constexpr const char *kEngine = "trt-rtx", *kTitle = "TensorRT-RTX", *kModule = "tensorrt_rtx";
#else
inline constexpr const char *kEngine = "trt", *kTitle = "TensorRT", *kModule = "tensorrt";
#endif

// The library's errors since they were last taken; it prints nothing. All runtimes of a process share them, as TensorRT wants,
// so errors of two threads can mix.
class Messages final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* text) noexcept override;
    // Every error once, and forgets them.
    std::string take();

private:
    std::mutex lock_;
    std::deque<std::string> found_;
};

class Library {
public:
    // Throws Error(Status::engine_unavailable): it is not installed, or of a version that this source was not made for.
    static Library& get();

    const std::string& version() const { return version_; }
    Messages& messages() { return messages_; }

    // Each throws Error(Status::engine | engine_unavailable) with the library's reason.
    std::unique_ptr<nvinfer1::IRuntime> runtime();
    std::unique_ptr<nvinfer1::IRefitter> refitter(nvinfer1::ICudaEngine& engine);
    std::unique_ptr<nvonnxparser::IParserRefitter> parser_refitter(nvinfer1::IRefitter& refitter);

    // An error with the library's own reason; of the kind that says so where there is no usable GPU.
    Error failure(const std::string& problem);

private:
    Library();
    void* parser_library();

    Messages messages_;
    void* library_;
    std::mutex lock_;
    void* parser_library_ = nullptr;  // loaded for plans without weights only
    std::string version_;
};

}  // namespace prtool::trt::PRTOOL_TRT_LIBRARY
