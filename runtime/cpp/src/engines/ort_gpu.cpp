// Engines ort-cuda and ort-tensorrt: ONNX Runtime on an NVIDIA GPU, from and to its memory. Needs ONNX Runtime's GPU build at run
// time; nothing of it is linked.
#include <algorithm>
#include <map>
#include <utility>

#include "cuda/cuda.hpp"
#include "cuda/gpu_device.hpp"
#include "engines/ort_session.hpp"
#include "engines/ort_tensorrt_cache.hpp"
#include "text.hpp"

namespace prtool {

namespace {

constexpr const char* kCuda = "CUDAExecutionProvider";
constexpr const char* kTensorRt = "TensorrtExecutionProvider";

// A provider's options and the functions of ONNX Runtime's C API that make, set and free them.
template <typename Options>
struct ProviderApi {
    OrtStatus*(ORT_API_CALL* make)(Options**);
    OrtStatus*(ORT_API_CALL* set)(Options*, const char* const*, const char* const*, std::size_t);
    OrtStatus*(ORT_API_CALL* set_value)(Options*, const char*, void*);
    void(ORT_API_CALL* free)(Options*);
};

template <typename Options>
using ProviderOptions = std::unique_ptr<Options, void (*)(Options*)>;

template <typename Options>
ProviderOptions<Options> provider_options(const ProviderApi<Options>& api, const std::map<std::string, std::string>& settings, cudaStream_t stream) {
    Options* made = nullptr;
    Ort::ThrowOnError(api.make(&made));
    ProviderOptions<Options> owned(made, api.free);
    std::vector<const char*> names;
    std::vector<const char*> values;
    for (const auto& [name, value] : settings) {
        names.push_back(name.c_str());
        values.push_back(value.c_str());
    }
    Ort::ThrowOnError(api.set(made, names.data(), values.data(), names.size()));
    Ort::ThrowOnError(api.set_value(made, "user_compute_stream", stream));
    return owned;
}

void add_cuda(Ort::SessionOptions& options, int device, cudaStream_t stream) {
    const OrtApi& ort = Ort::GetApi();
    const ProviderApi<OrtCUDAProviderOptionsV2> api{ort.CreateCUDAProviderOptions, ort.UpdateCUDAProviderOptions, ort.UpdateCUDAProviderOptionsWithValue,
                                                    ort.ReleaseCUDAProviderOptions};
    // float32 as asked for: TF32 rounds the factors of every product to 10 bits, and is on by default. Without the heuristic
    // every new batch size tries all algorithms of the one convolution.
    const auto made = provider_options(api, {{"device_id", std::to_string(device)}, {"use_tf32", "0"}, {"cudnn_conv_algo_search", "HEURISTIC"}}, stream);
    options.AppendExecutionProvider_CUDA_V2(*made);
}

void add_tensorrt(Ort::SessionOptions& options, const std::map<std::string, std::string>& settings, cudaStream_t stream) {
    const OrtApi& ort = Ort::GetApi();
    const ProviderApi<OrtTensorRTProviderOptionsV2> api{ort.CreateTensorRTProviderOptions, ort.UpdateTensorRTProviderOptions,
                                                        ort.UpdateTensorRTProviderOptionsWithValue, ort.ReleaseTensorRTProviderOptions};
    const auto made = provider_options(api, settings, stream);
    options.AppendExecutionProvider_TensorRT_V2(*made);
}

class OrtGpuGraph final : public Graph {
public:
    OrtGpuGraph(const std::string& path, const GraphSpec& spec, const Ort::SessionOptions& options, int device)
        : session_(path, spec, options), memory_("Cuda", OrtDeviceAllocator, device, OrtMemTypeDefault) {
        // Work is in the order of the stream, so nothing need wait here.
        run_options_.AddConfigEntry("disable_synchronize_execution_providers", "1");
    }

    void run(const std::vector<TensorRef>& inputs, const std::vector<TensorRef>& outputs, Work&) override {
        try {
            Ort::IoBinding binding(session_.get());
            for (const TensorRef& tensor : inputs) binding.BindInput(tensor.name, value_of(tensor, memory_));
            for (const TensorRef& tensor : outputs) binding.BindOutput(tensor.name, value_of(tensor, memory_));
            session_.get().Run(run_options_, binding);
        } catch (const Ort::Exception& cause) {
            throw session_.failure(inputs, cause);
        }
    }

private:
    OrtSession session_;
    Ort::MemoryInfo memory_;
    Ort::RunOptions run_options_;
};

// Throws Error(Status::engine_unavailable): the ONNX Runtime that is loaded was built without a provider.
void require(const std::string& engine, const char* provider) {
    const std::vector<std::string> found = Ort::GetAvailableProviders();
    if (std::find(found.begin(), found.end(), provider) != found.end()) return;
    throw Error(Status::engine_unavailable, "engine " + engine + " needs " + provider + ", but the ONNX Runtime that is loaded (" +
                                                OrtGetApiBase()->GetVersionString() + ") has only " + joined(found) +
                                                "; put the library of its GPU build before it, with LD_LIBRARY_PATH or at build time");
}

class OrtGpuEngine final : public Engine {
public:
    OrtGpuEngine(const char* name, const char* provider, const EngineSettings& settings) : settings_(settings), tensorrt_(provider == std::string(kTensorRt)) {
        gpu_ = cuda::gpu(settings.device);
        require(name, provider);
        // ONNX Runtime allocates while it runs, which cannot be recorded, and knows one stream a session.
        device_ = cuda::make_device(settings.device, {name, false, true});
        info_ = {name, OrtGetApiBase()->GetVersionString(), gpu_.name + ", " + provider};
    }

    const EngineInfo& info() const override { return info_; }
    std::string graph_precision() const override { return settings_.precision; }
    Device& device() override { return *device_; }

    std::unique_ptr<Graph> load(const std::string& path, const GraphSpec& spec, const Profile& profile) override {
        const cuda::DeviceScope here(settings_.device);
        if (!tensorrt_) return open(path, spec, {});
        const OrtTensorRtCache cache(path, spec, profile, settings_, gpu_);
        const auto alone = cache.checked();
        std::unique_ptr<Graph> graph = open(path, spec, cache.settings());
        cache.keep_digests();
        return graph;
    }

private:
    std::unique_ptr<Graph> open(const std::string& path, const GraphSpec& spec, const std::map<std::string, std::string>& tensorrt) {
        Ort::SessionOptions options = session_options(settings_.threads > 0 ? settings_.threads : granted_cpus(), settings_.spinning);
        try {
            if (!tensorrt.empty()) add_tensorrt(options, tensorrt, device_->stream());
            add_cuda(options, settings_.device, device_->stream());
        } catch (const Ort::Exception& cause) {
            throw Error(Status::engine_unavailable, "engine " + info_.name + " cannot start its provider: " + cause.what() +
                                                        "; install the CUDA, cuDNN (and TensorRT) libraries that ONNX Runtime " + info_.version + " was built for");
        }
        return std::make_unique<OrtGpuGraph>(path, spec, options, settings_.device);
    }

    EngineSettings settings_;
    bool tensorrt_;
    cuda::Gpu gpu_;
    EngineInfo info_;
    std::unique_ptr<cuda::GpuDevice> device_;
};

}  // namespace

std::unique_ptr<Engine> make_ort_cuda(const EngineSettings& settings) {
    return std::make_unique<OrtGpuEngine>("ort-cuda", kCuda, settings);
}

std::unique_ptr<Engine> make_ort_tensorrt(const EngineSettings& settings) {
    return std::make_unique<OrtGpuEngine>("ort-tensorrt", kTensorRt, settings);
}

}  // namespace prtool
