#include "encoder.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "errors.hpp"

namespace prtool {

namespace {

void check_finite(const float* embeddings, std::int64_t batch, std::int64_t width) {
    std::int64_t bad = 0;
    std::int64_t first = -1;
    for (std::int64_t image = 0; image < batch; ++image) {
        // A sum is finite only where every value is: length 1 excludes overflow.
        float sum = 0.0F;
        for (std::int64_t axis = 0; axis < width; ++axis) sum += embeddings[image * width + axis];
        if (std::isfinite(sum)) continue;
        first = bad == 0 ? image : first;
        ++bad;
    }
    if (bad > 0) {
        throw Error(Status::engine, std::to_string(bad) + " of " + std::to_string(batch) + " embeddings are not finite (first: item " + std::to_string(first) +
                                        "); look for NaN or infinity in the input, or for overflow in a graph of reduced precision");
    }
}

}  // namespace

Encoder::Encoder(const std::string& bundle, const EncoderOptions& options) : Encoder(bundle, options, make_engine(options.engine, options.settings)) {}

Encoder::Encoder(const std::string& bundle, const EncoderOptions& options, std::unique_ptr<Engine> engine)
    : bundle_(Bundle::open(bundle, options.verify)),
      mode_(options.mode),
      preprocess_(bundle_.manifest().preprocess_for(options.mode)),
      info_(engine->info()),
      pipeline_(make_pipeline(options.mode, bundle_, std::move(engine))) {
    if (!options.jpeg_scaling) return;
    least_size_ = [spec = preprocess_](std::int64_t width, std::int64_t height) { return prtool::least_size(width, height, spec); };
}

std::size_t Encoder::pixels_per_image() const {
    return std::size_t{3} * static_cast<std::size_t>(preprocess_.height) * static_cast<std::size_t>(preprocess_.width);
}

void Encoder::encode_pixels(const float* pixels, std::int64_t batch, const Keep& keep, float* embeddings) const {
    const std::vector<std::int64_t> counts = counts_of(keep);
    const std::int64_t width = bundle_.manifest().model.embed_dim;
    // The graph writes here, so that the caller's memory stays as it was when something fails.
    std::vector<float> found(static_cast<std::size_t>(batch) * static_cast<std::size_t>(width));
    pipeline_->embed(pixels, batch, counts, found.data());
    check_finite(found.data(), batch, width);
    std::copy(found.begin(), found.end(), embeddings);
}

void Encoder::encode_device_pixels(const float* pixels, std::int64_t batch, const Keep& keep, float* embeddings, void* stream) const {
    pipeline_->embed_on_device(pixels, batch, counts_of(keep), embeddings, stream);
}

const ClassTable& Encoder::classes() const {
    const std::lock_guard<std::mutex> hold(lock_);
    if (classes_ == nullptr) classes_ = std::make_unique<ClassTable>(ClassTable::of(bundle_));
    return *classes_;
}

std::vector<std::int64_t> Encoder::counts_of(const Keep& keep) const {
    const Manifest& manifest = bundle_.manifest();
    if (mode_ != "full") return manifest.counts(keep);
    if (!std::holds_alternative<Keep::Default>(keep.value) && !manifest.keeps_all(keep)) {
        throw Error(Status::keep, "mode 'full' drops nothing, but fewer patches were requested; give the default or 1.0, or open another mode");
    }
    return manifest.prune.counts(manifest.prune.patches());
}

}  // namespace prtool
