// OpenVINO on the CPU: float32, bfloat16 as an arithmetic of the float32 graphs, and int8 graphs.
#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <openvino/frontend/manager.hpp>
#include <openvino/op/topk.hpp>
#include <openvino/openvino.hpp>
#include <openvino/opsets/opset13.hpp>
#include <thread>

#include "engine.hpp"
#include "errors.hpp"

namespace prtool {

namespace {

constexpr const char* kDevice = "CPU";
constexpr const char* kOutputSuffix = "/sink_port_0";

ov::Core& core() {
    // Never freed: graphs of other static objects may outlive it otherwise.
    static auto* const made = new ov::Core;
    return *made;
}

std::string version_text() {
    const std::string build = ov::get_openvino_version().buildNumber;
    return build.substr(0, build.find('-'));
}

std::string cpu_name() {
    std::string name = core().get_property(kDevice, ov::device::full_name);
    name.erase(name.find_last_not_of(' ') + 1);
    return name;
}

// Keeps the indices inside the data: OpenVINO does not check them, so a hostile graph could read the process's memory.
void bound_indices(ov::op::v8::GatherND& node) {
    const ov::Output<ov::Node> indices = node.input_value(1);
    const ov::element::Type kind = indices.get_element_type();
    // A depth that is not known throws, as every other fault of a graph.
    const std::int64_t depth = indices.get_partial_shape()[indices.get_partial_shape().size() - 1].get_length();
    std::vector<std::int64_t> axes(static_cast<std::size_t>(depth));
    std::iota(axes.begin(), axes.end(), static_cast<std::int64_t>(node.get_batch_dims()));
    const auto constant = [](const ov::element::Type& type, const std::vector<std::int64_t>& values, const ov::Shape& shape) {
        return ov::op::v0::Constant::create(type, shape, values);
    };
    const auto shape = std::make_shared<ov::op::v3::ShapeOf>(node.input_value(0), kind);
    const auto sizes = std::make_shared<ov::op::v8::Gather>(shape, constant(ov::element::i64, axes, {axes.size()}), constant(ov::element::i64, {0}, {}));
    const auto most = std::make_shared<ov::op::v1::Subtract>(sizes, constant(kind, {1}, {}));
    const auto below = std::make_shared<ov::op::v1::Minimum>(indices, most);
    node.input(1).replace_source_output(std::make_shared<ov::op::v1::Maximum>(below, constant(kind, {0}, {})));
}

// Straight to the ONNX reader: ov::Core offers a damaged file to every reader, and some of them write to stderr.
std::shared_ptr<ov::Model> read(const std::string& path) {
    try {
        ov::frontend::FrontEndManager manager;
        const auto onnx = manager.load_by_framework("onnx");
        std::shared_ptr<ov::Model> model = onnx->convert(onnx->load(path));
        // Among equal scores the lower index comes first, as in ONNX; OpenVINO leaves the order open unless it is told.
        for (const auto& node : model->get_ops()) {
            if (const auto best = ov::as_type_ptr<ov::op::v11::TopK>(node)) best->set_stable(true);
            if (const auto gather = ov::as_type_ptr<ov::op::v8::GatherND>(node)) bound_indices(*gather);
        }
        return model;
    } catch (const std::exception& cause) {
        throw Error(Status::engine, "OpenVINO cannot load " + path + ": " + cause.what() + "; copy or export the bundle again");
    }
}

ov::Tensor tensor_of(const TensorRef& tensor) {
    const ov::element::Type type = tensor.type == ElementType::int64 ? ov::element::i64 : ov::element::f32;
    return {type, ov::Shape(tensor.shape.begin(), tensor.shape.end()), tensor.data};
}

class OpenVinoGraph final : public Graph {
public:
    OpenVinoGraph(const std::string& path, const GraphSpec& spec, const ov::AnyMap& settings) : path_(path) {
        const std::shared_ptr<ov::Model> model = read(path);
        // A tensor can have several names once a graph is simplified; its node keeps the file's.
        for (std::size_t place = 0; place < model->inputs().size(); ++place) inputs_[model->input(place).get_node()->get_friendly_name()] = place;
        for (std::size_t place = 0; place < model->outputs().size(); ++place) {
            const std::string name = model->output(place).get_node()->get_friendly_name();
            outputs_[name.substr(0, name.rfind(kOutputSuffix))] = place;
        }
        for (const TensorSpec& input : spec.inputs) {
            if (inputs_.count(input.name) == 0) throw Error(Status::engine, path + " has no input " + input.name + "; export it again");
        }
        try {
            compiled_ = core().compile_model(model, kDevice, settings);
        } catch (const std::exception& cause) {
            throw Error(Status::engine, "OpenVINO cannot compile " + path + ": " + cause.what());
        }
    }

    void run(const std::vector<TensorRef>& inputs, const std::vector<TensorRef>& outputs, Work&) override {
        // A request that fails is not used again: what it holds is unknown.
        ov::InferRequest request = take();
        try {
            for (const TensorRef& tensor : inputs) request.set_input_tensor(inputs_.at(tensor.name), tensor_of(tensor));
            // With one thread infer() loses the error of a call that fails, and the outputs are those of the call before.
            request.start_async();
            request.wait();
            for (const TensorRef& tensor : outputs) copy_output(request, tensor);
        } catch (const Error&) {
            throw;
        } catch (const std::exception& cause) {
            throw Error(Status::engine, "OpenVINO failed in " + path_ + ": " + cause.what());
        }
        const std::lock_guard<std::mutex> hold(lock_);
        idle_.push_back(std::move(request));
    }

private:
    void copy_output(ov::InferRequest& request, const TensorRef& tensor) {
        const auto place = outputs_.find(tensor.name);
        if (place == outputs_.end()) throw Error(Status::engine, path_ + " has no output " + tensor.name + "; export the bundle again");
        const ov::Tensor found = request.get_output_tensor(place->second);
        const ov::Tensor wanted = tensor_of(tensor);
        if (found.get_element_type() != wanted.get_element_type() || found.get_shape() != wanted.get_shape()) {
            const ov::Shape& shape = found.get_shape();
            throw Error(Status::engine, path_ + " gave " + tensor.name + " as " + found.get_element_type().to_string() + " of shape " +
                                            listed({shape.begin(), shape.end()}) + ", but " + wanted.get_element_type().to_string() + " of shape " +
                                            listed(tensor.shape) + " was expected; do not use this result: export the bundle again, or take another engine");
        }
        std::memcpy(tensor.data, found.data(), found.get_byte_size());
    }

    ov::InferRequest take() {
        const std::lock_guard<std::mutex> hold(lock_);
        if (idle_.empty()) return compiled_.create_infer_request();
        ov::InferRequest request = std::move(idle_.back());
        idle_.pop_back();
        return request;
    }

    std::string path_;
    ov::CompiledModel compiled_;
    std::map<std::string, std::size_t> inputs_;
    std::map<std::string, std::size_t> outputs_;
    std::mutex lock_;
    std::vector<ov::InferRequest> idle_;
};

// The settings of the Python package, so that both languages run alike.
ov::AnyMap settings_of(const EngineSettings& settings, int threads) {
    return {
        // Left to itself, OpenVINO takes bf16 on every processor that has it. An int8 graph says itself what is quantised.
        ov::hint::inference_precision(settings.precision == "bf16" ? ov::element::bf16 : ov::element::f32),
        ov::inference_num_threads(threads),
        ov::num_streams(1),
        // The number of threads is the caller's; without this it is lowered to the physical cores.
        ov::hint::enable_hyper_threading(true),
        // Every process that pins starts at the same cores: engines that share a machine would leave others idle.
        ov::hint::enable_cpu_pinning(threads == static_cast<int>(std::thread::hardware_concurrency())),
    };
}

class OpenVinoEngine final : public Engine {
public:
    explicit OpenVinoEngine(const EngineSettings& settings) : precision_(settings.precision), threads_(settings.threads > 0 ? settings.threads : granted_cpus()) {
        const std::vector<std::string> able = core().get_property(kDevice, ov::device::capabilities);
        if (precision_ == "bf16" && std::find(able.begin(), able.end(), "BF16") == able.end()) {
            throw Error(Status::engine_unavailable,
                        "precision = bf16, but " + cpu_name() + " computes in " + joined(able) + " only (bf16 needs AVX512_BF16 or AMX); use fp32 or int8");
        }
        settings_ = settings_of(settings, threads_);
        info_ = {"openvino", version_text(), cpu_name() + ", " + std::to_string(threads_) + (threads_ > 1 ? " threads" : " thread")};
    }

    const EngineInfo& info() const override { return info_; }
    // bf16 is an arithmetic of the float32 graphs.
    std::string graph_precision() const override { return precision_ == "int8" ? "int8" : "fp32"; }
    Device& device() override { return *device_; }
    std::unique_ptr<Graph> load(const std::string& path, const GraphSpec& spec) override {
        return std::make_unique<OpenVinoGraph>(path, spec, settings_);
    }

private:
    std::string precision_;
    int threads_;
    ov::AnyMap settings_;
    EngineInfo info_;
    std::unique_ptr<Device> device_ = make_host_device("openvino");
};

}  // namespace

std::unique_ptr<Engine> make_openvino(const EngineSettings& settings) {
    try {
        return std::make_unique<OpenVinoEngine>(settings);
    } catch (const ov::Exception& cause) {
        throw Error(Status::engine_unavailable, std::string("OpenVINO finds no CPU device: ") + cause.what());
    }
}

}  // namespace prtool
