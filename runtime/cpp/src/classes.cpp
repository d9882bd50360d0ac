#include "classes.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "errors.hpp"
#include "safetensors.hpp"
#include "text.hpp"

namespace prtool {

namespace {

constexpr double kLengthTolerance = 1e-3;
constexpr std::int64_t kMostHeaderBytes = std::int64_t{1} << 20;

}  // namespace

ClassTable ClassTable::of(const Bundle& bundle) {
    const Manifest& manifest = bundle.manifest();
    if (!manifest.classes) {
        throw Error(Status::bundle, bundle.path() + " has no classes, so it cannot classify; export it again with class names, or use its embeddings");
    }
    ClassTable table;
    table.classes_ = static_cast<std::int64_t>(manifest.classes->names.size());
    table.embed_dim_ = manifest.model.embed_dim;
    table.scale_ = manifest.model.logit_scale;
    table.bias_ = manifest.model.logit_bias;
    const GuardedFile file = bundle.open_file(manifest.classes->file);
    const std::int64_t most = table.classes_ * table.embed_dim_ * static_cast<std::int64_t>(sizeof(float)) + kMostHeaderBytes;
    if (file.size() > most) {
        throw Error(Status::bundle, file.path() + " has " + std::to_string(file.size()) + " bytes, but at most " + std::to_string(most) + " are read; export the bundle again");
    }
    Tensor tensor = read_tensor(file, "embeddings");
    bundle.check_unchanged();
    const std::string what = manifest.classes->file + " of " + bundle.path();
    const std::vector<std::int64_t> wanted{table.classes_, table.embed_dim_};
    if (tensor.shape != wanted || table.classes_ == 0) {
        throw Error(Status::bundle, what + " holds " + listed(tensor.shape) + ", but the manifest says " + listed(wanted) + "; export the bundle again");
    }
    for (auto row = tensor.values.begin(); row != tensor.values.end(); row += table.embed_dim_) {
        const double length = std::sqrt(std::inner_product(row, row + table.embed_dim_, row, 0.0));
        if (!(std::abs(length - 1.0) <= kLengthTolerance)) {
            throw Error(Status::bundle, what + " has an embedding of length " + shown(length) + ", but all must be 1; export the bundle again");
        }
    }
    table.embeddings_ = std::move(tensor.values);
    return table;
}

std::vector<double> ClassTable::probabilities_of(const float* embedding) const {
    std::vector<double> shares(static_cast<std::size_t>(classes_));
    for (std::int64_t label = 0; label < classes_; ++label) {
        const float* row = embeddings_.data() + label * embed_dim_;
        double cosine = 0.0;
        for (std::int64_t axis = 0; axis < embed_dim_; ++axis) cosine += static_cast<double>(row[axis]) * static_cast<double>(embedding[axis]);
        const double logit = scale_ * cosine + bias_;
        if (!std::isfinite(logit)) {
            throw Error(Status::bundle, "class logits of scale " + shown(scale_) + " and bias " + shown(bias_) + " are not finite; export the bundle again");
        }
        shares[static_cast<std::size_t>(label)] = logit;
    }
    const double most = *std::max_element(shares.begin(), shares.end());
    for (double& share : shares) share = std::exp(share - most);
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    for (double& share : shares) share /= sum;
    return shares;
}

void ClassTable::classify(const float* embeddings, std::int64_t count, std::int64_t top, std::int64_t* labels, float* probabilities) const {
    if (top < 1) throw Error(Status::config, "top = " + std::to_string(top) + ", but it must be at least 1");
    top = std::min(top, classes_);
    std::vector<std::int64_t> order(static_cast<std::size_t>(classes_));
    for (std::int64_t image = 0; image < count; ++image) {
        const float* embedding = embeddings + image * embed_dim_;
        if (!std::all_of(embedding, embedding + embed_dim_, [](float value) { return std::isfinite(value); })) {
            throw Error(Status::shape, "embedding " + std::to_string(image) + " is not finite, so it has no class");
        }
        const std::vector<double> shares = probabilities_of(embedding);
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + top, order.end(), [&shares](std::int64_t first, std::int64_t second) {
            const double one = shares[static_cast<std::size_t>(first)];
            const double other = shares[static_cast<std::size_t>(second)];
            return one > other || (one == other && first < second);
        });
        for (std::int64_t place = 0; place < top; ++place) {
            labels[image * top + place] = order[static_cast<std::size_t>(place)];
            probabilities[image * top + place] = static_cast<float>(shares[static_cast<std::size_t>(order[static_cast<std::size_t>(place)])]);
        }
    }
}

}  // namespace prtool
