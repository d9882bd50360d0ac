// The device of GPU engines beside the host's, on a CUDA that is faked: order of copies and work, reuse, recordings, threads.
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "cuda/gpu_device.hpp"
#include "errors.hpp"
#include "fake_cuda.hpp"

namespace {

using namespace prtool;

constexpr std::int64_t kPatches = 12;
constexpr std::int64_t kWidth = 3;
constexpr std::int64_t kPrefix = 1;
constexpr std::int64_t kAppended = 2;
constexpr std::int64_t kLength = kPrefix + kPatches + kAppended;
constexpr std::int64_t kPixels = kPatches + kLength * kWidth;  // of an image: its scores, then its tokens

// Copies on the work's stream, as a graph's kernel would, or at once on the host.
void copy(Work& work, const float* from, std::int64_t count, float* to) {
    auto* const stream = static_cast<cudaStream_t>(work.stream());
    if (stream == nullptr) {
        std::copy_n(from, count, to);
    } else {
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(float), cudaMemcpyDeviceToDevice, stream);
    }
}

// Two selections, the second among what the first kept, whose scores are those of the first in reverse.
Device::Steps steps_of(const Call& call) {
    return [&call](Work& work, const float* pixels, float* embeddings) {
        const std::int64_t first = call.counts[0], second = call.counts[1], batch = call.batch;
        float* const scores = work.floats(0, static_cast<std::size_t>(batch * kPatches));
        float* const tokens = work.floats(1, static_cast<std::size_t>(batch * kLength * kWidth));
        for (std::int64_t image = 0; image < batch; ++image) {
            copy(work, pixels + image * kPixels, kPatches, scores + image * kPatches);
            copy(work, pixels + image * kPixels + kPatches, kLength * kWidth, tokens + image * kLength * kWidth);
        }
        float* const kept = work.floats(2, static_cast<std::size_t>(batch * (kPrefix + first + kAppended) * kWidth));
        work.keep_best(scores, tokens, {batch, kPatches, kWidth, kPrefix, kAppended}, first, kept);
        work.keep_best(scores, kept, {batch, first, kWidth, kPrefix, kAppended}, second, embeddings);
    };
}

Call call_of(std::int64_t batch, std::int64_t first, std::int64_t second) {
    return {batch, {first, second}, static_cast<std::size_t>(batch * kPixels), static_cast<std::size_t>(batch * (kPrefix + second + kAppended) * kWidth)};
}

std::vector<float> pixels_of(const Call& call, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> values(-3, 3);  // so that scores tie
    std::vector<float> pixels(call.pixels);
    for (float& pixel : pixels) pixel = static_cast<float>(values(random));
    return pixels;
}

std::vector<float> on_host(const Call& call, const std::vector<float>& pixels) {
    std::vector<float> found(call.embeddings);
    make_host_device("host")->run(call, pixels.data(), found.data(), steps_of(call));
    return found;
}

std::vector<float> on(Device& device, const Call& call, const std::vector<float>& pixels) {
    std::vector<float> found(call.embeddings, -1.0F);
    device.run(call, pixels.data(), found.data(), steps_of(call));
    return found;
}

std::unique_ptr<cuda::GpuDevice> made(bool records, bool one_stream = false) {
    return cuda::make_device(1, {"fake", records, one_stream});
}

struct Leaks {
    fake_cuda::Counts before = fake_cuda::counts();
    ~Leaks() {
        const fake_cuda::Counts after = fake_cuda::counts();
        CHECK(after.memories == before.memories);
        CHECK(after.streams == before.streams);
        CHECK(after.events == before.events);
        CHECK(after.graphs == before.graphs);
    }
};

}  // namespace

TEST_CASE("results are the host's, whether recorded or not") {
    const Leaks leaks;
    for (const bool records : {false, true}) {
        const auto device = made(records);
        for (unsigned seed = 0; seed < 4; ++seed) {
            for (const Call& call : {call_of(1, 7, 3), call_of(2, 7, 3), call_of(2, 12, 12), call_of(3, 5, 1)}) {
                const std::vector<float> pixels = pixels_of(call, seed);
                CHECK(on(*device, call, pixels) == on_host(call, pixels));
            }
        }
    }
}

TEST_CASE("calls of sizes that came before allocate nothing, and are replayed") {
    const auto device = made(true);
    const Call call = call_of(2, 7, 3);
    on(*device, call, pixels_of(call, 0));
    const fake_cuda::Counts first = fake_cuda::counts();
    for (unsigned seed = 1; seed < 4; ++seed) on(*device, call, pixels_of(call, seed));
    CHECK(fake_cuda::counts().allocations == first.allocations);
    CHECK(fake_cuda::counts().replays == first.replays + 3);
}

TEST_CASE("a context is kept for the sizes used last, and the memory of others is freed") {
    const auto device = made(false);
    for (std::int64_t batch = 1; batch <= 40; ++batch) on(*device, call_of(batch, 7, 3), pixels_of(call_of(batch, 7, 3), 0));
    const int held = fake_cuda::counts().streams;
    CHECK(held <= 16);
    on(*device, call_of(40, 7, 3), pixels_of(call_of(40, 7, 3), 1));
    CHECK(fake_cuda::counts().streams == held);
}

TEST_CASE("device memory, in the order of the caller's stream") {
    const Leaks leaks;
    for (const bool records : {false, true}) {
        const auto device = made(records);
        const Call call = call_of(2, 7, 3);
        cudaStream_t stream = nullptr;
        cudaStreamCreateWithFlags(&stream, 0);
        for (unsigned seed = 0; seed < 3; ++seed) {
            const std::vector<float> source = pixels_of(call, seed);
            std::vector<float> pixels(call.pixels), between(call.embeddings), found(call.embeddings);
            const std::size_t bytes = call.embeddings * sizeof(float);
            cudaMemcpyAsync(pixels.data(), source.data(), call.pixels * sizeof(float), cudaMemcpyHostToDevice, stream);
            device->run_on_device(call, pixels.data(), between.data(), stream, steps_of(call));
            cudaMemcpyAsync(found.data(), between.data(), bytes, cudaMemcpyDeviceToHost, stream);
            cudaStreamSynchronize(stream);
            CHECK(found == on_host(call, source));
        }
        cudaStreamDestroy(stream);
    }
}

TEST_CASE("the first score that is NaN is named, at any location") {
    const auto device = made(true);
    const Call call = call_of(3, 7, 3);
    for (unsigned seed = 0; seed < 3; ++seed) {
        std::vector<float> pixels = pixels_of(call, seed);
        pixels[2 * kPixels + 4] = pixels[kPixels + 5] = std::numeric_limits<float>::quiet_NaN();
        try {
            on(*device, call, pixels);
            FAIL("accepted");
        } catch (const Error& error) {
            CHECK(error.status() == Status::shape);
            CHECK(std::string(error.what()).find("image 1, patch 5 is NaN") != std::string::npos);
        }
        CHECK(on(*device, call, pixels_of(call, seed)) == on_host(call, pixels_of(call, seed)));
    }
}

TEST_CASE("an error leaves nothing behind, neither in the first call nor while it is recorded") {
    const Leaks leaks;
    const Call call = call_of(2, 7, 3);
    for (const int failing : {0, 1}) {
        const auto device = made(true);
        for (int number = 0; number < 2; ++number) {
            const Device::Steps steps = [&](Work& work, const float* pixels, float* embeddings) {
                steps_of(call)(work, pixels, embeddings);
                if (number == failing) throw Error(Status::engine, "the graph failed");
            };
            std::vector<float> found(call.embeddings), pixels = pixels_of(call, 1);
            if (number == failing) {
                CHECK_THROWS_AS(device->run(call, pixels.data(), found.data(), steps), Error);
            } else {
                device->run(call, pixels.data(), found.data(), steps);
            }
        }
        CHECK(on(*device, call, pixels_of(call, 2)) == on_host(call, pixels_of(call, 2)));
    }
}

TEST_CASE("out of memory is said with its sizes") {
    const Leaks leaks;
    const auto device = made(false);
    const Call call = call_of(2, 7, 3);
    fake_cuda::fail_allocations(1);
    try {
        on(*device, call, pixels_of(call, 0));
        FAIL("accepted");
    } catch (const Error& error) {
        CHECK(error.status() == Status::memory);
    }
    CHECK(on(*device, call, pixels_of(call, 0)) == on_host(call, pixels_of(call, 0)));
}

TEST_CASE("threads, each on its context or one after the other on one stream") {
    const Leaks leaks;
    for (const bool one_stream : {false, true}) {
        const auto device = made(!one_stream, one_stream);
        CHECK((device->stream() != nullptr) == one_stream);
        std::vector<std::thread> threads;
        std::vector<int> wrong(4);
        for (unsigned number = 0; number < 4; ++number) {
            threads.emplace_back([&, number] {
                for (unsigned turn = 0; turn < 20; ++turn) {
                    const Call call = call_of(1 + turn % 2, 7, 3);
                    const std::vector<float> pixels = pixels_of(call, 100 * number + turn);
                    wrong[number] += on(*device, call, pixels) == on_host(call, pixels) ? 0 : 1;
                }
            });
        }
        for (std::thread& thread : threads) thread.join();
        CHECK(wrong == std::vector<int>(4, 0));
    }
}

TEST_CASE("the caller's GPU stays the current one") {
    const auto current = [] {
        int device = -1;
        cudaGetDevice(&device);
        return device;
    };
    const int before = current();
    {
        const auto device = made(true);
        const Call call = call_of(1, 7, 3);
        on(*device, call, pixels_of(call, 0));
        CHECK(current() == before);
    }
    CHECK(current() == before);
}

TEST_CASE("a GPU that is not there") {
    try {
        cuda::make_device(2, {"fake", false, false});
        FAIL("accepted");
    } catch (const Error& error) {
        CHECK(error.status() == Status::engine_unavailable);
        CHECK(std::string(error.what()).find("device = 2, but the NVIDIA driver lists 2") == 0);
    }
}
