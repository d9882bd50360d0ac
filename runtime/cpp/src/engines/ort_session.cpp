#include "engines/ort_session.hpp"

#include <cstdlib>

#include "errors.hpp"

namespace prtool {

namespace {

// ONNX Runtime 1.32 and later write an identifier of the device into HOME and connect to their makers. They read this variable
// when the first environment of the process is made, and later calls change nothing. Set when this library is loaded: there
// are no other threads then that might read the environment. Whoever wants telemetry sets it to 0.
__attribute__((constructor)) void disable_telemetry() {
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
}

// One for the process, as ONNX Runtime wants it, and never freed: sessions of other static objects may outlive it otherwise.
Ort::Env& environment() {
    static auto* const env = new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "prtool");
    return *env;
}

void check_inputs(const Ort::Session& session, const std::string& path, const GraphSpec& spec) {
    const Ort::AllocatorWithDefaultOptions allocator;
    std::vector<std::string> found;
    std::vector<std::string> declared;
    for (std::size_t place = 0; place < session.GetInputCount(); ++place) found.emplace_back(session.GetInputNameAllocated(place, allocator).get());
    for (const TensorSpec& tensor : spec.inputs) declared.push_back(tensor.name);
    if (found != declared) {
        throw Error(Status::engine, path + " takes " + joined(found) + ", but it was declared to take " + joined(declared) + "; export it again");
    }
}

}  // namespace

Ort::SessionOptions session_options(int threads, bool spinning) {
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
    options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_ALL);
    options.SetIntraOpNumThreads(threads);
    options.SetInterOpNumThreads(1);
    options.AddConfigEntry("session.intra_op.allow_spinning", spinning ? "1" : "0");
    // Each session has its own pool, and one that spins on after its call takes the cores from the next session.
    options.AddConfigEntry("session.force_spinning_stop", "1");
    return options;
}

OrtSession::OrtSession(const std::string& path, const GraphSpec& spec, const Ort::SessionOptions& options) : path_(path), session_(nullptr) {
    try {
        session_ = Ort::Session(environment(), path.c_str(), options);
    } catch (const Ort::Exception& cause) {
        throw Error(Status::engine, "ONNX Runtime cannot load " + path + ": " + cause.what() + "; copy or export the bundle again");
    }
    check_inputs(session_, path, spec);
}

Error OrtSession::failure(const std::vector<TensorRef>& inputs, const Ort::Exception& cause) const {
    std::vector<std::string> texts;
    for (const TensorRef& tensor : inputs) texts.push_back(std::string(tensor.name) + " " + listed(tensor.shape));
    return {Status::engine, "ONNX Runtime failed in " + path_ + " on " + joined(texts) + ": " + cause.what()};
}

Ort::Value value_of(const TensorRef& tensor, const Ort::MemoryInfo& floats_in) {
    std::size_t count = 1;
    for (const std::int64_t axis : tensor.shape) count *= static_cast<std::size_t>(axis);
    const std::vector<std::int64_t>& shape = tensor.shape;
    if (tensor.type == ElementType::int64) {
        return Ort::Value::CreateTensor<std::int64_t>(host_memory(), static_cast<std::int64_t*>(tensor.data), count, shape.data(), shape.size());
    }
    return Ort::Value::CreateTensor<float>(floats_in, static_cast<float*>(tensor.data), count, shape.data(), shape.size());
}

const Ort::MemoryInfo& host_memory() {
    static const Ort::MemoryInfo info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return info;
}

}  // namespace prtool
