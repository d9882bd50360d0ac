// Where an engine's graphs read and write, and the order in which the steps of one call happen there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "select.hpp"

namespace prtool {

class Graph;

// The steps of one call at a time. Its memory, and what graphs keep in it, serve later calls of the same sizes.
class Work {
public:
    // What a graph keeps for calls of these sizes, such as an execution context.
    struct State {
        virtual ~State() = default;
    };

    Work() = default;
    Work(const Work&) = delete;
    Work& operator=(const Work&) = delete;
    virtual ~Work() = default;

    // A buffer of `count` floats where the graphs work, not set; each number has its own, and keeps it as long as `count` is the same.
    virtual float* floats(std::size_t number, std::size_t count) = 0;

    // The k patches of the highest scores (see `select`), with the tokens that are always kept: scores (batch, patches) and
    // tokens as `gather` takes them, both where the graphs work.
    virtual void keep_best(const float* scores, const float* tokens, const Sequence& sequence, std::int64_t k, float* kept) = 0;

    // The cudaStream_t that all of this is put on; null on the host.
    virtual void* stream() const { return nullptr; }

    std::unique_ptr<State>& state_of(const Graph& graph) { return states_[&graph]; }

private:
    std::map<const Graph*, std::unique_ptr<State>> states_;
};

// What a call is: calls of equal batch and counts have the same shapes everywhere.
struct Call {
    std::int64_t batch = 0;
    std::vector<std::int64_t> counts;  // patches kept at each location
    std::size_t pixels = 0;            // floats that it takes
    std::size_t embeddings = 0;        // floats that it gives
};

class Device {
public:
    // Puts a call's steps on `work`; pixels and embeddings lie where the graphs work.
    using Steps = std::function<void(Work& work, const float* pixels, float* embeddings)>;

    virtual ~Device() = default;

    // From host memory to host memory; returns when the embeddings are there. May be called from many threads at once.
    // Throws what the steps throw; Error(Status::shape): a score is NaN; Error(Status::engine): the device failed.
    virtual void run(const Call& call, const float* pixels, float* embeddings, const Steps& steps) = 0;

    // From device memory to device memory, in the order of the cudaStream_t `stream`;
    // may return before it is done. A score that is NaN ranks last.
    // Throws Error(Status::config): the engine works in host memory.
    virtual void run_on_device(const Call& call, const float* pixels, float* embeddings, void* stream, const Steps& steps) = 0;
};

// Host memory; `engine` names the engine in errors.
std::unique_ptr<Device> make_host_device(const char* engine);

}  // namespace prtool
