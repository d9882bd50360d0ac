#include "device.hpp"

#include <string>

#include "errors.hpp"

namespace prtool {

namespace {

class HostWork final : public Work {
public:
    float* floats(std::size_t number, std::size_t count) override {
        std::vector<float>& buffer = buffers_[number];
        buffer.resize(count);
        return buffer.data();
    }

    void keep_best(const float* scores, const float* tokens, const Sequence& sequence, std::int64_t k, float* kept) override {
        gather(tokens, sequence, select(scores, sequence.batch, sequence.patches, k), k, kept);
    }

private:
    std::map<std::size_t, std::vector<float>> buffers_;
};

class HostDevice final : public Device {
public:
    explicit HostDevice(const char* engine) : engine_(engine) {}

    void run(const Call&, const float* pixels, float* embeddings, const Steps& steps) override {
        HostWork work;
        steps(work, pixels, embeddings);
    }

    void run_on_device(const Call&, const float*, float*, void*, const Steps&) override {
        throw Error(Status::config, std::string("engine ") + engine_ + " works in host memory; give it host memory, or open ort-cuda, trt or trt-rtx");
    }

private:
    const char* engine_;
};

}  // namespace

std::unique_ptr<Device> make_host_device(const char* engine) {
    return std::make_unique<HostDevice>(engine);
}

}  // namespace prtool
