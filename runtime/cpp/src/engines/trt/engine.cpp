// Engines trt and trt-rtx: plans of a TensorRT library on an NVIDIA GPU, which `prtool build` made.
#include "engine.hpp"

#include <algorithm>
#include <cstddef>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/cuda.hpp"
#include "cuda/gpu_device.hpp"
#include "engines/trt/library.hpp"
#include "engines/trt/plans.hpp"
#include "engines/trt/shapes.hpp"
#include "errors.hpp"

namespace prtool {

namespace trt::PRTOOL_TRT_LIBRARY {

namespace {

using Contexts = nvinfer1::ExecutionContextAllocationStrategy;

nvinfer1::Dims dims_of(const std::vector<std::int64_t>& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

std::vector<std::int64_t> shape_of(const nvinfer1::Dims& dims) {
    return {dims.d, dims.d + std::max(dims.nbDims, 0)};
}

// A plan that was loaded, which lives as long as its contexts. Members are freed from the last to the first.
struct LoadedPlan {
    Library& library;
    std::string graph;    // the ONNX file's name, for messages
    std::string command;  // builds such a plan, for messages
    std::vector<TensorSpec> inputs;
    std::vector<Profile> profiles;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::mutex lock;  // held while a context is made

    void require(bool done, const std::string& problem) const {
        if (!done) throw library.failure(graph + " " + problem);
    }
};

// Puts the weights of the ONNX file into a plan that was built without them.
void refit(LoadedPlan& plan, const std::string& path) {
    const auto refitter = plan.library.refitter(*plan.engine);
    const auto parser = plan.library.parser_refitter(*refitter);
    if (parser->refitFromFile(path.c_str()) && refitter->refitCudaEngine()) return;
    std::string reasons;
    for (int place = 0; place < parser->getNbErrors(); ++place) reasons += (place == 0 ? "" : "; ") + std::string(parser->getError(place)->desc());
    throw plan.library.failure(std::string(kTitle) + " cannot put the weights of " + path + " into its engine (" +
                               (reasons.empty() ? "no parser error" : reasons) + ")");
}

void deserialise(LoadedPlan& plan, const Plan& found, const std::string& graph_path) {
    plan.runtime = plan.library.runtime();
    // Such a plan brings the part of the library that runs it; its digest was checked just now.
    if (found.version_compatible) plan.runtime->setEngineHostCodeAllowed(true);
    plan.engine.reset(plan.runtime->deserializeCudaEngine(found.content.data(), found.content.size()));
    if (plan.engine == nullptr) {
        throw plan.library.failure(std::string(kTitle) + " " + plan.library.version() + " does not load " + found.path +
                                   "; build it again with '" + plan.command + " --rebuild'");
    }
    if (found.strip_weights) refit(plan, graph_path);
}

std::vector<std::string> names_of(const std::vector<TensorSpec>& specs) {
    std::vector<std::string> names;
    for (const TensorSpec& spec : specs) names.push_back(spec.name);
    std::sort(names.begin(), names.end());
    return names;
}

// Floats are float32 on the GPU, and shapes int64 on the host, which is what `run` gives. declared: null for an output.
void check_tensor(const LoadedPlan& plan, const char* name, const TensorSpec* declared) {
    const bool is_shape = declared != nullptr && is_shape_input(*declared);
    const auto axes = static_cast<std::size_t>(plan.engine->getTensorShape(name).nbDims);
    if (declared != nullptr && axes != declared->shape.size()) {
        throw Error(Status::engine, plan.graph + ": " + name + " has " + std::to_string(axes) + " axes in its engine, but " +
                                        std::to_string(declared->shape.size()) + " were declared; export the bundle again");
    }
    const bool typed = plan.engine->getTensorDataType(name) == (is_shape ? nvinfer1::DataType::kINT64 : nvinfer1::DataType::kFLOAT);
    const bool placed = plan.engine->getTensorLocation(name) == (is_shape ? nvinfer1::TensorLocation::kHOST : nvinfer1::TensorLocation::kDEVICE);
    if (typed && placed) return;
    throw Error(Status::engine, plan.graph + ": " + name + " is not " + (is_shape ? "int64 on the host" : "float32 on the GPU") +
                                    " in its engine; export the bundle again");
}

void check_plan(const LoadedPlan& plan, const GraphSpec& spec) {
    std::vector<std::string> inputs, outputs;
    for (int place = 0; place < plan.engine->getNbIOTensors(); ++place) {
        const char* const name = plan.engine->getIOTensorName(place);
        const bool is_input = plan.engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        (is_input ? inputs : outputs).emplace_back(name);
        const auto declared = std::find_if(spec.inputs.begin(), spec.inputs.end(), [name](const TensorSpec& one) { return one.name == name; });
        check_tensor(plan, name, is_input && declared != spec.inputs.end() ? &*declared : nullptr);
    }
    std::sort(inputs.begin(), inputs.end());
    std::sort(outputs.begin(), outputs.end());
    if (inputs == names_of(spec.inputs) && outputs == names_of(spec.outputs)) return;
    throw Error(Status::engine, plan.graph + " takes " + joined(inputs) + " and gives " + joined(outputs) + ", but it was declared to take " +
                                    joined(names_of(spec.inputs)) + " and to give " + joined(names_of(spec.outputs)) + "; export the bundle again");
}

// A context made ready for the sizes of one Work, with memory of exactly what these need. Members are freed from the last to the
// first: the context before what it uses.
class Context final : public Work::State {
public:
    Context(std::shared_ptr<LoadedPlan> plan, const std::vector<TensorRef>& inputs, const std::vector<TensorRef>& outputs, cudaStream_t stream)
        : plan_(std::move(plan)), sizes_(call_sizes(plan_->inputs, inputs, plan_->graph)) {
        const std::size_t profile = choose_profile(plan_->profiles, sizes_, plan_->graph, plan_->command);
        {
            const std::lock_guard<std::mutex> hold(plan_->lock);
            context_.reset(plan_->engine->createExecutionContext(Contexts::kUSER_MANAGED));
        }
        require(context_ != nullptr, "makes no execution context");
        require(context_->setOptimizationProfileAsync(static_cast<std::int32_t>(profile), stream), "rejects profile " + std::to_string(profile));
        set_inputs(inputs);
        set_memory();
        check_outputs(outputs);
    }

    // Every address, where it is not the one of the last run: a recorded run must change nothing.
    void bind(const std::vector<TensorRef>& inputs, const std::vector<TensorRef>& outputs) {
        if (call_sizes(plan_->inputs, inputs, plan_->graph) != sizes_) {
            throw Error(Status::internal, plan_->graph + " was made ready for " + sizes_text(sizes_) + ", and is run on other sizes");
        }
        for (const TensorRef& tensor : inputs) {
            if (tensor.type == ElementType::float32) set_address(tensor.name, tensor.data);
        }
        for (const TensorRef& tensor : outputs) set_address(tensor.name, tensor.data);
    }

    void enqueue(cudaStream_t stream) { require(context_->enqueueV3(stream), "failed"); }

private:
    void require(bool done, const std::string& problem) const { plan_->require(done, problem + " on " + sizes_text(sizes_)); }

    void set_inputs(const std::vector<TensorRef>& inputs) {
        for (const TensorSpec& spec : plan_->inputs) {
            const auto same = [&spec](const TensorRef& tensor) { return spec.name == tensor.name; };
            const TensorRef& tensor = *std::find_if(inputs.begin(), inputs.end(), same);
            if (!is_shape_input(spec)) {
                require(context_->setInputShape(tensor.name, dims_of(tensor.shape)), "rejects " + spec.name + " of shape " + listed(tensor.shape));
                continue;
            }
            // The context reads them at every run, so they are its own.
            const auto* const values = static_cast<const std::int64_t*>(tensor.data);
            const auto kept = values_.emplace(spec.name, std::vector<std::int64_t>(values, values + tensor.shape.front())).first;
            require(context_->setTensorAddress(kept->first.c_str(), kept->second.data()), "takes no values of " + spec.name);
        }
        const char* lacking = nullptr;
        require(context_->inferShapes(1, &lacking) == 0, std::string("lacks a shape or value for ") + (lacking != nullptr ? lacking : "an input"));
    }

    void set_memory() {
        const std::size_t bytes = context_->updateDeviceMemorySizeForShapes();
        scratch_ = cuda::device_memory(std::max<std::size_t>(bytes, 1), "the scratch memory of " + plan_->graph + " on " + sizes_text(sizes_));
        context_->setDeviceMemoryV2(scratch_.get(), static_cast<std::int64_t>(bytes));
    }

    // Those that are wanted have memory for what will be written; the others get some.
    void check_outputs(const std::vector<TensorRef>& outputs) {
        for (int place = 0; place < plan_->engine->getNbIOTensors(); ++place) {
            const char* const name = plan_->engine->getIOTensorName(place);
            if (plan_->engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) continue;
            const std::vector<std::int64_t> shape = shape_of(context_->getTensorShape(name));
            const auto wanted = std::find_if(outputs.begin(), outputs.end(), [name](const TensorRef& tensor) { return std::string(tensor.name) == name; });
            if (wanted == outputs.end()) {
                std::size_t bytes = sizeof(float);
                for (const std::int64_t axis : shape) bytes *= static_cast<std::size_t>(std::max<std::int64_t>(axis, 1));
                unwanted_.push_back(cuda::device_memory(bytes, std::string(name) + " of " + plan_->graph));
                set_address(name, unwanted_.back().get());
            } else if (wanted->shape != shape) {
                throw Error(Status::engine, plan_->graph + " gives " + name + " of shape " + listed(shape) + ", but " + listed(wanted->shape) +
                                                " was declared; export the bundle again");
            }
        }
    }

    void set_address(const char* name, void* memory) {
        void*& last = addresses_[name];
        if (last == memory) return;
        require(context_->setTensorAddress(name, memory), std::string("takes no address for ") + name);
        last = memory;
    }

    std::shared_ptr<LoadedPlan> plan_;
    Sizes sizes_;
    std::map<std::string, std::vector<std::int64_t>> values_;
    std::map<std::string, void*> addresses_;
    cuda::DeviceMemory scratch_;
    std::vector<cuda::DeviceMemory> unwanted_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

class TrtGraph final : public Graph {
public:
    explicit TrtGraph(std::shared_ptr<LoadedPlan> plan) : plan_(std::move(plan)) {}

    void run(const std::vector<TensorRef>& inputs, const std::vector<TensorRef>& outputs, Work& work) override {
        auto* const stream = static_cast<cudaStream_t>(work.stream());
        std::unique_ptr<Work::State>& kept = work.state_of(*this);
        if (kept == nullptr) kept = std::make_unique<Context>(plan_, inputs, outputs, stream);
        auto& context = static_cast<Context&>(*kept);
        context.bind(inputs, outputs);
        context.enqueue(stream);
    }

private:
    std::shared_ptr<LoadedPlan> plan_;
};

class TrtEngine final : public Engine {
public:
    explicit TrtEngine(const EngineSettings& settings)
        : number_(settings.device),
          precision_(settings.precision),
          gpu_(cuda::gpu(settings.device)),
          library_(Library::get()),
          cache_(settings.cache.empty() ? default_root() : settings.cache),
          info_{kEngine, library_.version(), gpu_.words()},
          device_(cuda::make_device(settings.device, {kEngine, settings.cuda_graphs, false})) {}

    const EngineInfo& info() const override { return info_; }
    std::string graph_precision() const override { return precision_; }
    Device& device() override { return *device_; }

    std::unique_ptr<Graph> load(const std::string& path, const GraphSpec& spec) override {
        const cuda::DeviceScope here(number_);
        const std::string bundle = path.substr(0, path.size() - std::min(path.size(), spec.file.size() + 1));
        const std::string command = std::string("prtool build --engine ") + kEngine + " --bundle " + bundle + " --precision " + precision_;
        const PlanKey key = plan_key(path, {{"precision", precision_},
                                            {"library", kModule},
                                            {"library_version", library_.version()},
                                            {"device", gpu_.name},
                                            {"compute_capability", gpu_.compute_capability},
                                            {"driver", gpu_.driver}});
        const Plan found = find_plan(cache_, key, command);
        const auto plan = std::shared_ptr<LoadedPlan>(new LoadedPlan{library_, spec.file, command, spec.inputs, found.profiles, nullptr, nullptr, {}});
        deserialise(*plan, found, path);
        check_plan(*plan, spec);
        return std::make_unique<TrtGraph>(plan);
    }

private:
    int number_;
    std::string precision_;
    cuda::Gpu gpu_;
    Library& library_;
    std::string cache_;
    EngineInfo info_;
    std::unique_ptr<Device> device_;
};

}  // namespace

std::unique_ptr<Engine> make(const EngineSettings& settings) {
    return std::make_unique<TrtEngine>(settings);
}

}  // namespace trt::PRTOOL_TRT_LIBRARY

#if defined(PRTOOL_TRT_RTX)
std::unique_ptr<Engine> make_trt_rtx(const EngineSettings& settings) {
#else
std::unique_ptr<Engine> make_trt(const EngineSettings& settings) {
#endif
    return trt::PRTOOL_TRT_LIBRARY::make(settings);
}

}  // namespace prtool
