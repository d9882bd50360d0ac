// One float32 tensor of a safetensors file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "guarded_file.hpp"

namespace prtool {

struct Tensor {
    std::vector<std::int64_t> shape;
    std::vector<float> values;
};

// Throws Error(Status::bundle): the file is damaged, or has no such float32 tensor.
Tensor read_tensor(const GuardedFile& file, const std::string& name);

}  // namespace prtool
