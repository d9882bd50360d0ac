// From pixels to embeddings: through one graph, pruned or not, or through split graphs with selection between them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"

namespace prtool {

// The graphs of a mode on one engine; both methods may be called from many threads at once.
class Pipeline {
public:
    virtual ~Pipeline() = default;

    // pixels: (batch, 3, height, width); counts: patches kept at each location; embeddings: (batch, E); all in host memory.
    void embed(const float* pixels, std::int64_t batch, const std::vector<std::int64_t>& counts, float* embeddings);

    // The same from and to the memory of the engine's GPU, in the order of a cudaStream_t; see Device::run_on_device.
    void embed_on_device(const float* pixels, std::int64_t batch, const std::vector<std::int64_t>& counts, float* embeddings, void* stream);

protected:
    // `image`: how the pixels of this mode are made.
    Pipeline(const Bundle& bundle, const Preprocess& image, std::unique_ptr<Engine> engine);

    // Puts the graphs of one call on `work`.
    virtual void steps(Work& work, const Call& call, const float* pixels, float* embeddings) = 0;

    std::unique_ptr<Graph> load(const std::string& role, const Bundle& bundle);
    const GraphSpec& spec_of(const std::string& role, const Bundle& bundle) const;
    std::vector<std::int64_t> pixels_shape(std::int64_t batch) const { return {batch, 3, height_, width_}; }
    std::vector<std::int64_t> embedding_shape(std::int64_t batch) const { return {batch, embed_dim_}; }

private:
    Call call_of(std::int64_t batch, const std::vector<std::int64_t>& counts) const;

    std::unique_ptr<Engine> engine_;  // outlives the graphs, which the classes of the modes hold
    std::int64_t height_;
    std::int64_t width_;
    std::int64_t embed_dim_;
};

// Loads every graph of a mode: "fused", "full", or "split", which only bundles that rank patches have.
// Throws Error(Status::config): the bundle has no such mode; and what Engine::load throws.
std::unique_ptr<Pipeline> make_pipeline(const std::string& mode, const Bundle& bundle, std::unique_ptr<Engine> engine);

}  // namespace prtool
