// Zero-shot classes: from image embeddings to labels and probabilities.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace prtool {

struct Tensor {
    std::vector<std::int64_t> shape;
    std::vector<float> values;
};

// One float32 tensor of a safetensors file. Throws Error(Status::bundle): the file is damaged, or has no such tensor.
Tensor read_tensor(const GuardedFile& file, const std::string& name);

class ClassTable {
public:
    // Throws Error(Status::bundle): the bundle has no classes, or their file does not fit the manifest.
    static ClassTable of(const Bundle& bundle);

    // The `top` most probable classes of each embedding, best first, of equal ones the lower label; all of them where there are
    // fewer. embeddings: (count, E); labels and probabilities: (count, min(top, classes)). Throws Error(Status::config): top is
    // below 1.
    void classify(const float* embeddings, std::int64_t count, std::int64_t top, std::int64_t* labels, float* probabilities) const;

private:
    std::vector<double> probabilities_of(const float* embedding) const;

    std::vector<float> embeddings_;  // (classes, E), each of length 1
    std::int64_t classes_ = 0;
    std::int64_t embed_dim_ = 0;
    double scale_ = 0.0;
    double bias_ = 0.0;
};

}  // namespace prtool
