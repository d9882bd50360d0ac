#include "engines/trt/library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <vector>

#include "errors.hpp"

namespace prtool::trt::PRTOOL_TRT_LIBRARY {

namespace {

constexpr std::size_t kMessagesKept = 20;
// What the libraries say where the driver is missing, too old, or finds no GPU.
constexpr std::array<const char*, 5> kNoDevice = {"cudaError 35", "cudaError 100", "insufficient for CUDA runtime", "no CUDA-capable device",
                                                  "CUDA initialization failure"};

#if defined(PRTOOL_TRT_RTX)
constexpr const char* kLibraryStem = "libtensorrt_rtx.so.";
constexpr const char* kParserStem = "libtensorrt_onnxparser_rtx.so.";
constexpr int kMinMinor = 0;
#else
constexpr const char* kLibraryStem = "libnvinfer.so.";
constexpr const char* kParserStem = "libnvonnxparser.so.";
// 10.12 is the first whose plans and profiles are as this source and the Python package make them.
constexpr int kMinMinor = NV_TENSORRT_MAJOR == 10 ? 12 : 0;
#endif

std::string dotted(std::initializer_list<int> numbers) {
    std::string text;
    for (const int number : numbers) text += (text.empty() ? "" : ".") + std::to_string(number);
    return text;
}

// By the major version, as packages link it; else by the whole version of the headers, as some archives name the file.
void* open_library(const std::string& stem) {
    std::vector<std::string> reasons;
    for (const std::string& end : {dotted({NV_TENSORRT_MAJOR}), dotted({NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH})}) {
        if (void* library = dlopen((stem + end).c_str(), RTLD_NOW | RTLD_LOCAL); library != nullptr) return library;
        reasons.emplace_back(dlerror());
    }
    throw Error(Status::engine_unavailable, std::string(kTitle) + " " + dotted({NV_TENSORRT_MAJOR}) + " cannot be loaded (" + joined(reasons) +
                                                "); install it, and name its folder in LD_LIBRARY_PATH");
}

template <typename Function>
Function* function(void* library, const char* name) {
    void* const found = dlsym(library, name);
    if (found == nullptr) {
        throw Error(Status::engine_unavailable,
                    std::string(kTitle) + " has no function " + name + "; install version " + dotted({NV_TENSORRT_MAJOR}) + " of it");
    }
    return reinterpret_cast<Function*>(found);
}

// As its Python module writes it; Error where it is not one that this source can call.
std::string checked_version(void* library) {
    using Number = std::int32_t();
    const int major = function<Number>(library, "getInferLibMajorVersion")(), minor = function<Number>(library, "getInferLibMinorVersion")();
    const int patch = function<Number>(library, "getInferLibPatchVersion")(), build = function<Number>(library, "getInferLibBuildVersion")();
    const std::string version = dotted({major, minor, patch, build});
    if (major != NV_TENSORRT_MAJOR || minor < kMinMinor) {
        throw Error(Status::engine_unavailable, std::string(kTitle) + " " + version + " was found, but this library was built for " +
                                                    dotted({NV_TENSORRT_MAJOR, kMinMinor}) + " and later of " + dotted({NV_TENSORRT_MAJOR}) +
                                                    "; install such a version, or build this library with the headers of that one");
    }
    return version;
}

}  // namespace

void Messages::log(Severity severity, const char* text) noexcept {
    if (severity > Severity::kERROR) return;
    try {
        const std::lock_guard<std::mutex> hold(lock_);
        found_.emplace_back(text);
        if (found_.size() > kMessagesKept) found_.pop_front();
    } catch (...) {
        // Without memory for a message the call fails all the same, only with fewer reasons.
    }
}

std::string Messages::take() {
    const std::lock_guard<std::mutex> hold(lock_);
    std::vector<std::string> texts;
    for (const std::string& text : found_) {
        if (std::find(texts.begin(), texts.end(), text) == texts.end()) texts.push_back(text);
    }
    found_.clear();
    std::string together;
    for (const std::string& text : texts) together += (together.empty() ? "" : "; ") + text;
    return together.empty() ? "the library gives no reason" : together;
}

// Never freed: engines of other static objects may outlive it otherwise. A failed load is tried again by the next call.
Library& Library::get() {
    static auto* const library = new Library();
    return *library;
}

Library::Library() : library_(open_library(kLibraryStem)), version_(checked_version(library_)) {}

void* Library::parser_library() {
    const std::lock_guard<std::mutex> hold(lock_);
    if (parser_library_ == nullptr) parser_library_ = open_library(kParserStem);
    return parser_library_;
}

std::unique_ptr<nvinfer1::IRuntime> Library::runtime() {
    messages_.take();
    void* const made = function<void*(void*, std::int32_t)>(library_, "createInferRuntime_INTERNAL")(&messages_, NV_TENSORRT_VERSION);
    if (made == nullptr) throw failure(std::string(kTitle) + " cannot run on this machine");
    return std::unique_ptr<nvinfer1::IRuntime>(static_cast<nvinfer1::IRuntime*>(made));
}

std::unique_ptr<nvinfer1::IRefitter> Library::refitter(nvinfer1::ICudaEngine& engine) {
    void* const made = function<void*(void*, void*, std::int32_t)>(library_, "createInferRefitter_INTERNAL")(&engine, &messages_, NV_TENSORRT_VERSION);
    if (made == nullptr) throw failure(std::string(kTitle) + " cannot put weights into an engine");
    return std::unique_ptr<nvinfer1::IRefitter>(static_cast<nvinfer1::IRefitter*>(made));
}

std::unique_ptr<nvonnxparser::IParserRefitter> Library::parser_refitter(nvinfer1::IRefitter& refitter) {
    using Make = void*(void*, void*, std::int32_t);
    void* const made = function<Make>(parser_library(), "createNvOnnxParserRefitter_INTERNAL")(&refitter, &messages_, NV_ONNX_PARSER_VERSION);
    if (made == nullptr) throw failure(std::string(kTitle) + " makes no parser of ONNX files");
    return std::unique_ptr<nvonnxparser::IParserRefitter>(static_cast<nvonnxparser::IParserRefitter*>(made));
}

Error Library::failure(const std::string& problem) {
    const std::string reason = messages_.take();
    const auto says = [&reason](const char* sign) { return reason.find(sign) != std::string::npos; };
    if (std::any_of(kNoDevice.begin(), kNoDevice.end(), says)) {
        return {Status::engine_unavailable, problem + ": " + reason + "; " + kTitle + " finds no usable GPU, check the driver with nvidia-smi"};
    }
    return {Status::engine, problem + ": " + reason};
}

}  // namespace prtool::trt::PRTOOL_TRT_LIBRARY
