// Which shapes a TensorRT plan was built for, and which of its profiles a call belongs to; as the Python package's profiles.py.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "manifest.hpp"

namespace prtool::trt {

struct ShapeRange {
    std::int64_t min = 0;
    std::int64_t opt = 0;  // the builder makes this one fast
    std::int64_t max = 0;
};

// By the name of a dynamic axis ("batch", "tokens"), or of a value of an input that is itself a shape ("k"; of several "k[1]", "k[2]", ...).
using Profile = std::map<std::string, ShapeRange>;

// What a call asks for, in the graph's order, by the names of a profile.
using Sizes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;

// An input that is itself a shape: a few int64 numbers ("k"), which TensorRT reads on the host.
bool is_shape_input(const TensorSpec& spec);

// "batch 1:8:32, k 98:118:196 | ...", for messages.
std::string profiles_text(const std::vector<Profile>& profiles);

// Throws Error(Status::shape): an input is missing, or has another number of axes.
Sizes call_sizes(const std::vector<TensorSpec>& inputs, const std::vector<TensorRef>& tensors, const std::string& graph);

// "batch = 8, k = 118"
std::string sizes_text(const Sizes& sizes);

// The index of the narrowest profile that holds a call; among equally narrow ones, of the one whose optimal sizes are nearest.
// command: builds such a plan, for the message. Throws Error(Status::shape): no profile holds the call.
std::size_t choose_profile(const std::vector<Profile>& profiles, const Sizes& sizes, const std::string& graph, const std::string& command);

}  // namespace prtool::trt
