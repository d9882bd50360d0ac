// Engine ort: ONNX Runtime on the CPU.
#include "engines/ort_session.hpp"

namespace prtool {

namespace {

class OrtGraph final : public Graph {
public:
    OrtGraph(const std::string& path, const GraphSpec& spec, const Ort::SessionOptions& options) : session_(path, spec, options) {}

    void run(const std::vector<TensorRef>& inputs, const std::vector<TensorRef>& outputs, Work&) override {
        try {
            std::vector<const char*> names;
            std::vector<const char*> wanted;
            std::vector<Ort::Value> given;
            std::vector<Ort::Value> found;
            for (const TensorRef& tensor : inputs) {
                names.push_back(tensor.name);
                given.push_back(value_of(tensor, host_memory()));
            }
            for (const TensorRef& tensor : outputs) {
                wanted.push_back(tensor.name);
                found.push_back(value_of(tensor, host_memory()));
            }
            session_.get().Run(Ort::RunOptions{nullptr}, names.data(), given.data(), given.size(), wanted.data(), found.data(), found.size());
        } catch (const Ort::Exception& cause) {
            throw session_.failure(inputs, cause);
        }
    }

private:
    OrtSession session_;
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
    std::unique_ptr<Graph> load(const std::string& path, const GraphSpec& spec) override {
        return std::make_unique<OrtGraph>(path, spec, session_options(threads_, spinning_));
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
