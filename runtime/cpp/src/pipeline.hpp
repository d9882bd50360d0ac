// From pixels to embeddings: through one fused graph, through split graphs with selection between them, or unpruned.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"

namespace prtool {

// One way from pixels to embeddings; `embed` may be called from many threads at once.
class Pipeline {
public:
    virtual ~Pipeline() = default;

    // pixels: (batch, 3, height, width); counts: patches kept at each location; embeddings: (batch, E).
    virtual void embed(const float* pixels, std::int64_t batch, const std::vector<std::int64_t>& counts, float* embeddings) = 0;
};

// Loads every graph of a mode: "fused", "split" or "full".
// Throws Error(Status::config): no such mode; and what Engine::load throws.
std::unique_ptr<Pipeline> make_pipeline(const std::string& mode, const Bundle& bundle, Engine& engine);

}  // namespace prtool
