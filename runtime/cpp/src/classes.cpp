#include "classes.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "errors.hpp"
#include "json.hpp"

namespace prtool {

namespace {

constexpr double kLengthTolerance = 1e-3;
constexpr std::int64_t kLengthBytes = 8;
// A header has a hundred bytes a tensor, and a bundle's files have a few tensors.
constexpr std::int64_t kMostHeaderBytes = std::int64_t{1} << 20;
constexpr auto kFloatBytes = static_cast<std::int64_t>(sizeof(float));

[[noreturn]] void reject(const GuardedFile& file, const std::string& why) {
    throw Error(Status::bundle, file.path() + " cannot be read (" + why + "); export the bundle again");
}

void read_exactly(const GuardedFile& file, std::int64_t offset, void* out, std::size_t count) {
    if (file.read_at(offset, out, count) != count) reject(file, "it ends before its data do");
}

// Bytes of the header, which the file begins with as a little-endian number; so is every machine that this library is built for.
std::int64_t header_bytes(const GuardedFile& file) {
    std::uint64_t length = 0;
    if (file.size() < kLengthBytes) reject(file, "it has no header");
    read_exactly(file, 0, &length, sizeof(length));
    if (length > static_cast<std::uint64_t>(file.size() - kLengthBytes)) reject(file, "its header is longer than the file");
    if (length > static_cast<std::uint64_t>(kMostHeaderBytes)) reject(file, "its header has more than " + std::to_string(kMostHeaderBytes) + " bytes");
    return static_cast<std::int64_t>(length);
}

// Values of a tensor of that shape. Divided rather than multiplied: a product of hostile sizes would overflow.
std::int64_t count_of(const GuardedFile& file, const std::vector<std::int64_t>& shape) {
    std::int64_t count = 1;
    for (const std::int64_t axis : shape) {
        if (axis != 0 && count > file.size() / axis) reject(file, "a tensor is larger than the file");
        count *= axis;
    }
    return count;
}

}  // namespace

Tensor read_tensor(const GuardedFile& file, const std::string& name) {
    const std::int64_t length = header_bytes(file);
    std::string text(static_cast<std::size_t>(length), '\0');
    read_exactly(file, kLengthBytes, text.data(), text.size());
    const nlohmann::json header = parse_strictly(text, file.path());
    if (!header.is_object() || !header.contains(name)) reject(file, "it has no tensor '" + name + "'");
    const JsonReader json(header.at(name), file.path() + ": " + name);
    json.fields({"dtype", "shape", "data_offsets"});
    if (json.at("dtype").text() != "F32") reject(file, "tensor '" + name + "' is not float32");

    Tensor tensor;
    const std::int64_t most = file.size() - kLengthBytes - length;
    for (const JsonReader& axis : json.at("shape").items()) tensor.shape.push_back(axis.whole(0, most));
    const std::int64_t count = count_of(file, tensor.shape);
    const std::vector<JsonReader> offsets = json.at("data_offsets").items(2);
    const std::int64_t begin = offsets[0].whole(0, most);
    const std::int64_t end = offsets[1].whole(begin, most);
    if ((end - begin) % kFloatBytes != 0 || (end - begin) / kFloatBytes != count) reject(file, "tensor '" + name + "' has another size than its shape");
    tensor.values.resize(static_cast<std::size_t>(count));
    read_exactly(file, kLengthBytes + length + begin, tensor.values.data(), static_cast<std::size_t>(end - begin));
    return tensor;
}

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
