// Engine ort-cuda: ONNX Runtime on an NVIDIA GPU, from and to its memory. Needs ONNX Runtime's GPU build at run
// time; nothing of it is linked.
#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cuda.hpp"
#include "cuda/gpu_device.hpp"
#include "engines/ort_session.hpp"
#include "errors.hpp"

namespace prtool {

namespace {

constexpr const char* kName = "ort-cuda";
constexpr const char* kProvider = "CUDAExecutionProvider";

void add_cuda(Ort::SessionOptions& session, int device, cudaStream_t stream) {
    const OrtApi& ort = Ort::GetApi();
    OrtCUDAProviderOptionsV2* made = nullptr;
    Ort::ThrowOnError(ort.CreateCUDAProviderOptions(&made));
    const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(ort.ReleaseCUDAProviderOptions)> options(made, ort.ReleaseCUDAProviderOptions);
    // float32 as asked for: TF32 rounds the factors of every product to 10 bits, and is on by default. Without the heuristic
    // every new batch size tries all algorithms of the one convolution.
    const std::string number = std::to_string(device);
    const std::array<const char*, 3> names = {"device_id", "use_tf32", "cudnn_conv_algo_search"}, values = {number.c_str(), "0", "HEURISTIC"};
    Ort::ThrowOnError(ort.UpdateCUDAProviderOptions(made, names.data(), values.data(), names.size()));
    Ort::ThrowOnError(ort.UpdateCUDAProviderOptionsWithValue(made, "user_compute_stream", stream));
    session.AppendExecutionProvider_CUDA_V2(*made);
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

// Throws Error(Status::engine_unavailable): the ONNX Runtime that is loaded was built without the provider.
void require_provider() {
    const std::vector<std::string> found = Ort::GetAvailableProviders();
    if (std::find(found.begin(), found.end(), kProvider) != found.end()) return;
    throw Error(Status::engine_unavailable, std::string("engine ") + kName + " needs " + kProvider + ", but the ONNX Runtime that is loaded (" +
                                                OrtGetApiBase()->GetVersionString() + ") has only " + joined(found) +
                                                "; put the library of its GPU build before it, with LD_LIBRARY_PATH or at build time");
}

class OrtGpuEngine final : public Engine {
public:
    explicit OrtGpuEngine(const EngineSettings& settings) : settings_(settings) {
        const cuda::Gpu gpu = cuda::gpu(settings.device);
        require_provider();
        // ONNX Runtime allocates while it runs, which cannot be recorded, and knows one stream a session.
        device_ = cuda::make_device(settings.device, {kName, false, true});
        info_ = {kName, OrtGetApiBase()->GetVersionString(), gpu.name + ", " + kProvider};
    }

    const EngineInfo& info() const override { return info_; }
    std::string graph_precision() const override { return settings_.precision; }
    Device& device() override { return *device_; }

    std::unique_ptr<Graph> load(const std::string& path, const GraphSpec& spec) override {
        const cuda::DeviceScope here(settings_.device);
        Ort::SessionOptions options = session_options(settings_.threads > 0 ? settings_.threads : granted_cpus(), settings_.spinning);
        try {
            add_cuda(options, settings_.device, device_->stream());
        } catch (const Ort::Exception& cause) {
            throw Error(Status::engine_unavailable, std::string("engine ") + kName + " cannot start its provider: " + cause.what() +
                                                        "; install the CUDA and cuDNN libraries that ONNX Runtime " + info_.version + " was built for");
        }
        return std::make_unique<OrtGpuGraph>(path, spec, options, settings_.device);
    }

private:
    EngineSettings settings_;
    EngineInfo info_;
    std::unique_ptr<cuda::GpuDevice> device_;
};

}  // namespace

std::unique_ptr<Engine> make_ort_cuda(const EngineSettings& settings) {
    return std::make_unique<OrtGpuEngine>(settings);
}

}  // namespace prtool
