#include "cuda/gpu_device.hpp"

#include <algorithm>
#include <list>
#include <mutex>
#include <utility>

#include "cuda/stream_context.hpp"

namespace prtool::cuda {

namespace {

// Stream contexts that wait for a call of their sizes. The first call of new sizes is slow, and each context holds memory.
constexpr std::size_t kIdleContexts = 16;

class StreamDevice final : public GpuDevice {
public:
    StreamDevice(int number, const DeviceOptions& options) : number_(number), options_(options) {
        const DeviceScope here(number_);
        if (options_.one_stream) stream_ = new_stream();
    }

    ~StreamDevice() override {
        // CUDA frees memory and streams of the current GPU, which stays the calling thread's own; a destructor reports nothing.
        int before = 0;
        cudaGetDevice(&before);
        cudaSetDevice(number_);
        idle_.clear();
        stream_.reset();
        cudaSetDevice(before);
    }

    cudaStream_t stream() const override { return stream_.get(); }

    void run(const Call& call, const float* pixels, float* embeddings, const Steps& steps) override {
        use(call, [&](StreamContext& context) { context.run(pixels, embeddings, steps, options_.records); });
    }

    void run_on_device(const Call& call, const float* pixels, float* embeddings, void* stream, const Steps& steps) override {
        use(call, [&](StreamContext& context) { context.run_on_device(pixels, embeddings, static_cast<cudaStream_t>(stream), steps, options_.records); });
    }

private:
    // A context that fails is not used again: the state of its stream and memory is unknown.
    template <typename Do>
    void use(const Call& call, const Do& action) {
        const DeviceScope here(number_);
        std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
        if (options_.one_stream) turn.lock();
        std::unique_ptr<StreamContext> context = take(call);
        action(*context);
        give_back(std::move(context));
    }

    std::unique_ptr<StreamContext> take(const Call& call) {
        {
            const std::lock_guard<std::mutex> hold(lock_);
            const auto same = [&call](const std::unique_ptr<StreamContext>& context) { return context->call().batch == call.batch && context->call().counts == call.counts; };
            const auto found = std::find_if(idle_.begin(), idle_.end(), same);
            if (found != idle_.end()) {
                std::unique_ptr<StreamContext> context = std::move(*found);
                idle_.erase(found);
                return context;
            }
        }
        return std::make_unique<StreamContext>(call, stream_.get());
    }

    void give_back(std::unique_ptr<StreamContext> context) {
        std::unique_ptr<StreamContext> oldest;  // freed outside the lock, for that waits for its work
        const std::lock_guard<std::mutex> hold(lock_);
        idle_.push_front(std::move(context));
        if (idle_.size() <= kIdleContexts) return;
        oldest = std::move(idle_.back());
        idle_.pop_back();
    }

    int number_;
    DeviceOptions options_;
    Stream stream_;
    std::mutex turn_;
    std::mutex lock_;
    std::list<std::unique_ptr<StreamContext>> idle_;  // the one used last first
};

}  // namespace

std::unique_ptr<GpuDevice> make_device(int number, const DeviceOptions& options) {
    gpu(number);  // says in words what is missing
    return std::make_unique<StreamDevice>(number, options);
}

}  // namespace prtool::cuda
