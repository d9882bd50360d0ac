// ONNX Runtime on the CPU.
#include <onnxruntime_cxx_api.h>

#include <algorithm>

#include "engine.hpp"
#include "errors.hpp"
#include "text.hpp"

namespace prtool {

namespace {

// One for the process, as ONNX Runtime wants it, and never freed: sessions of other static objects may outlive it otherwise.
Ort::Env& environment() {
    static auto* const env = new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "prtool");
    return *env;
}

const Ort::MemoryInfo& host() {
    static const Ort::MemoryInfo info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return info;
}

// The settings of the Python package's sessions, so that both languages run alike.
Ort::SessionOptions options_of(int threads, bool spinning) {
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

Ort::Value value_of(const TensorRef& tensor) {
    std::size_t count = 1;
    for (const std::int64_t axis : tensor.shape) count *= static_cast<std::size_t>(axis);
    if (tensor.type == ElementType::int64) {
        return Ort::Value::CreateTensor<std::int64_t>(host(), static_cast<std::int64_t*>(tensor.data), count, tensor.shape.data(), tensor.shape.size());
    }
    return Ort::Value::CreateTensor<float>(host(), static_cast<float*>(tensor.data), count, tensor.shape.data(), tensor.shape.size());
}

class OrtGraph final : public Graph {
public:
    OrtGraph(const std::string& path, const GraphSpec& spec, const Ort::SessionOptions& options) : path_(path), session_(nullptr) {
        try {
            session_ = Ort::Session(environment(), path.c_str(), options);
        } catch (const Ort::Exception& cause) {
            throw Error(Status::engine, "ONNX Runtime cannot load " + path + ": " + cause.what() + "; copy or export the bundle again");
        }
        check_inputs(spec);
    }

    void run(const std::vector<TensorRef>& inputs, const std::vector<TensorRef>& outputs, Work&) override {
        try {
            std::vector<const char*> names;
            std::vector<const char*> wanted;
            std::vector<Ort::Value> given;
            std::vector<Ort::Value> found;
            for (const TensorRef& tensor : inputs) {
                names.push_back(tensor.name);
                given.push_back(value_of(tensor));
            }
            for (const TensorRef& tensor : outputs) {
                wanted.push_back(tensor.name);
                found.push_back(value_of(tensor));
            }
            session_.Run(Ort::RunOptions{nullptr}, names.data(), given.data(), given.size(), wanted.data(), found.data(), found.size());
        } catch (const Ort::Exception& cause) {
            throw Error(Status::engine, "ONNX Runtime failed in " + path_ + " on " + sizes_of(inputs) + ": " + cause.what());
        }
    }

private:
    static std::string sizes_of(const std::vector<TensorRef>& tensors) {
        std::vector<std::string> texts;
        for (const TensorRef& tensor : tensors) texts.push_back(std::string(tensor.name) + " " + listed(tensor.shape));
        return joined(texts);
    }

    void check_inputs(const GraphSpec& spec) const {
        const Ort::AllocatorWithDefaultOptions allocator;
        std::vector<std::string> found;
        std::vector<std::string> declared;
        for (std::size_t place = 0; place < session_.GetInputCount(); ++place) found.emplace_back(session_.GetInputNameAllocated(place, allocator).get());
        for (const TensorSpec& tensor : spec.inputs) declared.push_back(tensor.name);
        if (found != declared) {
            throw Error(Status::engine, path_ + " takes " + joined(found) + ", but it was declared to take " + joined(declared) + "; export it again");
        }
    }

    std::string path_;
    Ort::Session session_;
};

class OrtEngine final : public Engine {
public:
    explicit OrtEngine(const EngineSettings& settings)
        : precision_(settings.precision), threads_(settings.threads > 0 ? settings.threads : granted_cpus()), spinning_(settings.spinning) {
        info_ = {"ort", OrtGetApiBase()->GetVersionString(), "CPU, " + std::to_string(threads_) + (threads_ > 1 ? " threads" : " thread")};
    }

    const EngineInfo& info() const override { return info_; }
    std::string graph_precision() const override { return precision_; }
    Device& device() override { return *device_; }
    std::unique_ptr<Graph> load(const std::string& path, const GraphSpec& spec, const Profile&) override {
        return std::make_unique<OrtGraph>(path, spec, options_of(threads_, spinning_));
    }

private:
    std::string precision_;
    int threads_;
    bool spinning_;
    EngineInfo info_;
    std::unique_ptr<Device> device_ = make_host_device("ort");
};

}  // namespace

std::unique_ptr<Engine> make_ort(const EngineSettings& settings) {
    return std::make_unique<OrtEngine>(settings);
}

}  // namespace prtool
