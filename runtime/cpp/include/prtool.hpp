// prtool for C++17: a header over prtool.h with owned handles and exceptions.
//
//     prtool::Encoder encoder("bundle");
//     std::vector<float> embeddings = encoder.encode_files({"cat.jpg", "dog.jpg"}, prtool::Keep::ratio(0.6));
//     for (const auto& best : encoder.classify(embeddings)) std::cout << best.front().name << "\n";
//
// Threads and numbers are as prtool.h says. Every function throws prtool::Failure where the C API returns a status.
#ifndef PRTOOL_HPP
#define PRTOOL_HPP

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "prtool.h"

namespace prtool {
// The library has an Encoder and a Keep of its own: in a program that links it statically, equal symbols would be merged.
inline namespace client {

// What the C API returned; what() has its message.
class Failure : public std::runtime_error {
public:
    explicit Failure(prtool_status status) : std::runtime_error(prtool_last_error()), status_(status) {}
    prtool_status status() const noexcept { return status_; }

private:
    prtool_status status_;
};

inline void check(prtool_status status) {
    if (status != PRTOOL_OK) throw Failure(status);
}

// How many patches a call keeps.
class Keep {
public:
    Keep() = default;  // the bundle's default
    static Keep ratio(double value) { return Keep(prtool_keep_ratio(value), {}); }
    static Keep count(std::int64_t value) { return Keep(prtool_keep_count(value), {}); }
    static Keep counts(std::vector<std::int64_t> values) { return Keep({}, std::move(values)); }

    prtool_keep get() const { return counts_.empty() ? keep_ : prtool_keep_counts(counts_.data(), static_cast<std::int64_t>(counts_.size())); }

private:
    Keep(prtool_keep keep, std::vector<std::int64_t> counts) : keep_(keep), counts_(std::move(counts)) {}

    prtool_keep keep_ = prtool_keep_default();
    std::vector<std::int64_t> counts_;
};

// One class for one image.
struct Prediction {
    std::int64_t label;
    std::string name;
    float probability;
};

class Encoder {
public:
    explicit Encoder(const std::string& bundle, const prtool_options& options = prtool_options_default()) {
        prtool_encoder* made = nullptr;
        check(prtool_open(bundle.c_str(), &options, &made));
        handle_.reset(made);
    }

    const prtool_info& info() const { return *prtool_get_info(handle_.get()); }
    prtool_encoder* handle() const { return handle_.get(); }

    // pixels: (batch, 3, image_height, image_width). Returns (batch, embed_dim), as every method here does.
    std::vector<float> encode_pixels(const std::vector<float>& pixels, const Keep& keep = {}) const {
        const std::size_t each = std::size_t{3} * static_cast<std::size_t>(info().image_height) * static_cast<std::size_t>(info().image_width);
        if (pixels.size() % each != 0) throw std::invalid_argument("pixels hold no whole number of images");
        return encoded(prtool_encode_pixels, pixels.data(), pixels.size() / each, keep);
    }

    // From and to the memory of the engine's GPU, in the order of a cudaStream_t; see prtool.h.
    void encode_device_pixels(const float* pixels, std::int64_t batch, float* embeddings, void* stream, const Keep& keep = {}) const {
        check(prtool_encode_device_pixels(handle_.get(), pixels, batch, keep.get(), embeddings, stream));
    }

    std::vector<float> encode_files(const std::vector<std::string>& paths, const Keep& keep = {}) const {
        std::vector<const char*> names;
        for (const std::string& path : paths) names.push_back(path.c_str());
        return encoded(prtool_encode_files, names.data(), names.size(), keep);
    }

    std::vector<float> encode_rgb(const std::vector<prtool_rgb>& images, const Keep& keep = {}) const {
        return encoded(prtool_encode_rgb, images.data(), images.size(), keep);
    }

    std::vector<float> encode_bytes(const std::vector<prtool_bytes>& images, const Keep& keep = {}) const {
        return encoded(prtool_encode_bytes, images.data(), images.size(), keep);
    }

    // The `top` most probable classes of each embedding, best first; all of them where the bundle has fewer.
    std::vector<std::vector<Prediction>> classify(const std::vector<float>& embeddings, std::int64_t top = 5) const {
        const auto count = static_cast<std::int64_t>(embeddings.size()) / info().embed_dim;
        // One place at least, so that a bundle without classes and a `top` below 1 reach the library, which says what is wrong.
        const std::int64_t each = std::max<std::int64_t>(1, std::min(top, info().classes));
        std::vector<std::int64_t> labels(static_cast<std::size_t>(count * each));
        std::vector<float> shares(labels.size());
        check(prtool_classify(handle_.get(), embeddings.data(), count, top, labels.data(), shares.data()));
        std::vector<std::vector<Prediction>> found(static_cast<std::size_t>(count));
        for (std::size_t place = 0; place < labels.size(); ++place) {
            found[place / static_cast<std::size_t>(each)].push_back({labels[place], prtool_class_name(handle_.get(), labels[place]), shares[place]});
        }
        return found;
    }

    // The same of images.
    std::vector<std::vector<Prediction>> classify_files(const std::vector<std::string>& paths, const Keep& keep = {}, std::int64_t top = 5) const {
        return classify(encode_files(paths, keep), top);
    }
    std::vector<std::vector<Prediction>> classify_rgb(const std::vector<prtool_rgb>& images, const Keep& keep = {}, std::int64_t top = 5) const {
        return classify(encode_rgb(images, keep), top);
    }
    std::vector<std::vector<Prediction>> classify_bytes(const std::vector<prtool_bytes>& images, const Keep& keep = {}, std::int64_t top = 5) const {
        return classify(encode_bytes(images, keep), top);
    }

private:
    struct Free {
        void operator()(prtool_encoder* encoder) const { prtool_free(encoder); }
    };

    template <typename Function, typename Images>
    std::vector<float> encoded(const Function& encode, const Images* images, std::size_t count, const Keep& keep) const {
        std::vector<float> embeddings(count * static_cast<std::size_t>(info().embed_dim));
        check(encode(handle_.get(), images, static_cast<std::int64_t>(count), keep.get(), embeddings.data()));
        return embeddings;
    }

    std::unique_ptr<prtool_encoder, Free> handle_;
};

}  // namespace client
}  // namespace prtool

#endif
