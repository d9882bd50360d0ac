// Which shapes a TensorRT engine is built for, and which of its profiles a call belongs to; the words are the Python package's.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "engines/trt/cache.hpp"
#include "manifest.hpp"
#include "profile.hpp"

namespace prtool::trt {

// How an engine is built, besides its ranges.
struct BuildOptions {
    int level = 3;                     // the builder's optimisation level, 0 (fast to build) to 5 (fast to run)
    std::int64_t workspace_mib = 0;    // most scratch memory of the GPU; 0 leaves it to the library
    bool timing_cache = true;          // keep what the builder measured
    bool version_compatible = false;   // also loads in later versions of the library
    bool hardware_compatible = false;  // also loads on other GPUs
    bool strip_weights = false;        // the weights are put back from the ONNX file on loading
};

// What one engine is built as.
struct Recipe {
    std::vector<Profile> profiles;
    BuildOptions options;
};

// What a call asks for, in the graph's order: the name of a free axis, or of an input that is itself a shape -> its size or values.
using Sizes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;

// An input that is itself a shape: a few int64 numbers ("k"), which TensorRT reads on the host.
bool is_shape_input(const TensorSpec& spec);

// Of each profile the ranges that the graph has, the same ones once. Throws Error(Status::config): an axis has no range.
std::vector<Profile> graph_profiles(const std::vector<TensorSpec>& inputs, const std::vector<Profile>& profiles);

// "batch 1:8:32, k 98:118:196 | ...", as an engine's key holds them, and back. Throws Error(Status::engine): it is no such text.
std::string profiles_text(const std::vector<Profile>& profiles);
std::vector<Profile> parse_profiles(const std::string& text);

// "recipe=1 level=3 ...", as an engine's key holds it, and back. Throws Error(Status::engine): it is no such text.
std::string builder_text(const BuildOptions& options);
BuildOptions parse_builder(const std::string& text);

// The recipe of the engine of this graph and machine that was built or used last, whatever its ranges: what `prtool build` made
// is what runs. `asked` where there is none. key: of the graph as asked.
Recipe as_built_last(const EngineCache& cache, const EngineKey& key, const Recipe& asked);

// Throws Error(Status::shape): an input is missing, or has another number of axes.
Sizes call_sizes(const std::vector<TensorSpec>& inputs, const std::vector<TensorRef>& tensors, const std::string& graph);

// "batch = 8, k = 118"
std::string words(const Sizes& sizes);

// The index of the narrowest profile that holds a call; among equally narrow ones, of the one whose usual sizes are nearest.
// Throws Error(Status::shape): no profile holds it; the message has the value, what was built, and the command that builds for it.
std::size_t choose_profile(const std::vector<Profile>& profiles, const Sizes& sizes, const std::string& graph, const std::string& engine);

}  // namespace prtool::trt
