#include "cuda/gpu_device.hpp"

#include <algorithm>
#include <list>
#include <mutex>
#include <utility>

#include "cuda/lane.hpp"

namespace prtool::cuda {

namespace {

// Lanes that wait for a call of their sizes. The first call of new sizes is slow, and each lane holds memory.
constexpr std::size_t kIdleLanes = 16;

class LanedDevice final : public GpuDevice {
public:
    LanedDevice(int number, const DeviceOptions& options) : number_(number), options_(options) {
        const DeviceScope here(number_);
        if (options_.one_stream) stream_ = new_stream();
    }

    ~LanedDevice() override {
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
        use(call, [&](Lane& lane) { lane.run(pixels, embeddings, steps, options_.records); });
    }

    void run_on_device(const Call& call, const float* pixels, float* embeddings, void* stream, const Steps& steps) override {
        use(call, [&](Lane& lane) { lane.run_on_device(pixels, embeddings, static_cast<cudaStream_t>(stream), steps, options_.records); });
    }

private:
    // A lane that fails is not used again: what its stream and contexts hold is unknown.
    template <typename Do>
    void use(const Call& call, const Do& action) {
        const DeviceScope here(number_);
        std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
        if (options_.one_stream) turn.lock();
        std::unique_ptr<Lane> lane = take(call);
        action(*lane);
        give_back(std::move(lane));
    }

    std::unique_ptr<Lane> take(const Call& call) {
        {
            const std::lock_guard<std::mutex> hold(lock_);
            const auto same = [&call](const std::unique_ptr<Lane>& lane) { return lane->call().batch == call.batch && lane->call().counts == call.counts; };
            const auto found = std::find_if(idle_.begin(), idle_.end(), same);
            if (found != idle_.end()) {
                std::unique_ptr<Lane> lane = std::move(*found);
                idle_.erase(found);
                return lane;
            }
        }
        return std::make_unique<Lane>(call, stream_.get());
    }

    void give_back(std::unique_ptr<Lane> lane) {
        std::unique_ptr<Lane> oldest;  // freed outside the lock, for that waits for its work
        const std::lock_guard<std::mutex> hold(lock_);
        idle_.push_front(std::move(lane));
        if (idle_.size() <= kIdleLanes) return;
        oldest = std::move(idle_.back());
        idle_.pop_back();
    }

    int number_;
    DeviceOptions options_;
    Stream stream_;
    std::mutex turn_;
    std::mutex lock_;
    std::list<std::unique_ptr<Lane>> idle_;  // the one used last first
};

}  // namespace

std::unique_ptr<GpuDevice> make_device(int number, const DeviceOptions& options) {
    gpu(number);  // says in words what is missing
    return std::make_unique<LanedDevice>(number, options);
}

}  // namespace prtool::cuda
