// The C API over the encoder: every exception becomes a status and a message of the calling thread.
#include <algorithm>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "encoder.hpp"
#include "errors.hpp"
#include "image/decode.hpp"
#include "prtool.h"
#include "select.hpp"
#include "text.hpp"

struct prtool_encoder {
    prtool_encoder(const std::string& bundle, const prtool::EncoderOptions& options) : inner(bundle, options) {}

    prtool::Encoder inner;
    prtool_info info{};
};

namespace {

using prtool::Error;
using prtool::Keep;
using prtool::Status;

// Images are prepared and encoded in parts of this many: the pixels of one part lie in memory at once.
constexpr std::int64_t kImagesAtOnce = 32;
// Far more than memory holds, and few enough that no product of sizes leaves 64 bits.
constexpr std::int64_t kMostImages = std::int64_t{1} << 24;

thread_local std::string last_error;

prtool_status failed(Status status, const char* message) noexcept {
    try {
        last_error = message;
    } catch (...) {
        last_error.clear();
    }
    return static_cast<prtool_status>(status);
}

template <typename Call>
prtool_status guarded(const Call& call) noexcept {
    try {
        call();
        return PRTOOL_OK;
    } catch (const Error& error) {
        return failed(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        return failed(Status::memory, "out of memory; give fewer or smaller images at once");
    } catch (const std::length_error&) {
        return failed(Status::memory, "out of memory; give fewer or smaller images at once");
    } catch (const std::exception& error) {
        return failed(Status::internal, error.what());
    } catch (...) {
        return failed(Status::internal, "an unknown exception");
    }
}

void require(const void* pointer, const char* name) {
    if (pointer == nullptr) throw Error(Status::config, std::string(name) + " is NULL");
}

void require_count(std::int64_t count) {
    if (count < 1 || count > kMostImages) {
        throw Error(Status::shape, "count = " + std::to_string(count) + ", but a call takes 1 to " + std::to_string(kMostImages) + " images");
    }
}

Keep keep_of(const prtool_keep& keep) {
    const int kinds = (keep.ratio != 0.0 ? 1 : 0) + (keep.count != 0 ? 1 : 0) + (keep.counts != nullptr ? 1 : 0);
    if (kinds > 1) throw Error(Status::keep, "keep is several of a ratio, a count and a list; make it with one prtool_keep_ function");
    if (keep.counts != nullptr) {
        if (keep.length < 1) throw Error(Status::keep, "keep has a list of " + std::to_string(keep.length) + " counts; give one for each location");
        return {std::vector<std::int64_t>(keep.counts, keep.counts + keep.length)};
    }
    if (keep.ratio != 0.0) return {keep.ratio};
    if (keep.count != 0) return {keep.count};
    return {Keep::Default{}};
}

prtool::EncoderOptions options_of(const prtool_options* given) {
    prtool::EncoderOptions options;
    if (given == nullptr) return options;
    if (given->engine != nullptr) options.engine = given->engine;
    if (given->mode != nullptr) options.mode = given->mode;
    if (given->precision != nullptr) options.settings.precision = given->precision;
    if (given->threads < 0) throw Error(Status::config, "threads = " + std::to_string(given->threads) + ", but it must be 0 (all) or more");
    if (given->device < 0) throw Error(Status::config, "device = " + std::to_string(given->device) + ", but GPUs are counted from 0");
    options.settings.threads = given->threads;
    options.settings.spinning = given->no_spinning == 0;
    options.settings.device = given->device;
    options.settings.cuda_graphs = given->cuda_graphs != 0;
    if (given->cache != nullptr) options.settings.cache = given->cache;
    options.verify = given->trust_files == 0;
    return options;
}

prtool_info info_of(const prtool::Encoder& encoder) {
    const prtool::Manifest& manifest = encoder.bundle().manifest();
    prtool_info info{};
    info.embed_dim = manifest.model.embed_dim;
    info.image_height = manifest.preprocess.height;
    info.image_width = manifest.preprocess.width;
    info.patches = manifest.prune.patches();
    info.default_keep = manifest.default_keep;
    info.least_keep = manifest.least_keep;
    info.most_keep = manifest.most_keep;
    info.locations = static_cast<std::int64_t>(manifest.prune.locations.size());
    info.classes = manifest.classes ? static_cast<std::int64_t>(manifest.classes->names.size()) : 0;
    info.model = manifest.model.name.c_str();
    info.engine = encoder.info().name.c_str();
    info.engine_version = encoder.info().version.c_str();
    info.device = encoder.info().device.c_str();
    return info;
}

prtool::RgbView view_of(const prtool_rgb& image) {
    require(image.pixels, "an image's pixels");
    if (image.width < 1 || image.height < 1 || image.width > prtool::kMaxPixels / image.height) {
        throw Error(Status::shape, "an image has " + std::to_string(image.width) + " x " + std::to_string(image.height) + " pixels, but it must have 1 to " +
                                       std::to_string(prtool::kMaxPixels));
    }
    const std::int64_t stride = image.stride == 0 ? 3 * image.width : image.stride;
    if (stride < 3 * image.width) {
        throw Error(Status::shape, "stride = " + std::to_string(stride) + " bytes, but a row of " + std::to_string(image.width) + " pixels has " + std::to_string(3 * image.width));
    }
    return {image.pixels, image.width, image.height, stride};
}

void prepare_rgb(const prtool::Rgb& image, const prtool::Preprocess& spec, float* out) {
    prtool::prepare({image.pixels.data(), image.width, image.height, 3 * image.width}, spec, out);
}

// Prepares images with `prepare(number, out)` and encodes them, part after part.
template <typename Prepare>
void encode_images(const prtool::Encoder& encoder, std::int64_t count, const prtool_keep& keep, float* embeddings, const Prepare& prepare) {
    require(embeddings, "embeddings");
    require_count(count);
    const Keep asked = keep_of(keep);
    const std::int64_t width = encoder.bundle().manifest().model.embed_dim;
    const std::size_t each = encoder.pixels_per_image();
    std::vector<float> pixels(each * static_cast<std::size_t>(std::min(count, kImagesAtOnce)));
    std::vector<float> found(static_cast<std::size_t>(count) * static_cast<std::size_t>(width));
    for (std::int64_t start = 0; start < count; start += kImagesAtOnce) {
        const std::int64_t part = std::min(kImagesAtOnce, count - start);
        for (std::int64_t place = 0; place < part; ++place) prepare(start + place, pixels.data() + static_cast<std::size_t>(place) * each);
        encoder.encode_pixels(pixels.data(), part, asked, found.data() + start * width);
    }
    std::copy(found.begin(), found.end(), embeddings);
}

}  // namespace

const char* prtool_last_error(void) {
    return last_error.c_str();
}

const char* prtool_version(void) {
    return PRTOOL_VERSION;
}

const char* prtool_engines(void) {
    static const std::string names = [] {
        std::string text;
        for (const std::string& name : prtool::built_engines()) text += (text.empty() ? "" : ",") + name;
        return text;
    }();
    return names.c_str();
}

prtool_status prtool_open(const char* bundle, const prtool_options* options, prtool_encoder** encoder) {
    return guarded([&] {
        require(bundle, "bundle");
        require(encoder, "encoder");
        auto made = std::make_unique<prtool_encoder>(bundle, options_of(options));
        made->info = info_of(made->inner);
        *encoder = made.release();
    });
}

void prtool_close(prtool_encoder* encoder) {
    if (encoder != nullptr) encoder->inner.close();
}

void prtool_free(prtool_encoder* encoder) {
    delete encoder;
}

const prtool_info* prtool_info_of(const prtool_encoder* encoder) {
    return encoder == nullptr ? nullptr : &encoder->info;
}

prtool_keep prtool_keep_default(void) {
    return {0.0, 0, nullptr, 0};
}

prtool_keep prtool_keep_ratio(double ratio) {
    // Zero stands for "no ratio"; a caller that asks for it gets the error of a ratio out of range.
    return {ratio == 0.0 ? -1.0 : ratio, 0, nullptr, 0};
}

prtool_keep prtool_keep_count(int64_t count) {
    return {0.0, count == 0 ? -1 : count, nullptr, 0};
}

prtool_keep prtool_keep_counts(const int64_t* counts, int64_t length) {
    return {0.0, 0, counts, length};
}

prtool_status prtool_encode_pixels(prtool_encoder* encoder, const float* pixels, int64_t batch, prtool_keep keep, float* embeddings) {
    return guarded([&] {
        require(encoder, "encoder");
        require(pixels, "pixels");
        require(embeddings, "embeddings");
        require_count(batch);
        encoder->inner.encode_pixels(pixels, batch, keep_of(keep), embeddings);
    });
}

prtool_status prtool_encode_device_pixels(prtool_encoder* encoder, const float* pixels, int64_t batch, prtool_keep keep, float* embeddings, void* stream) {
    return guarded([&] {
        require(encoder, "encoder");
        require(pixels, "pixels");
        require(embeddings, "embeddings");
        require_count(batch);
        encoder->inner.encode_device_pixels(pixels, batch, keep_of(keep), embeddings, stream);
    });
}

prtool_status prtool_encode_rgb(prtool_encoder* encoder, const prtool_rgb* images, int64_t count, prtool_keep keep, float* embeddings) {
    return guarded([&] {
        require(encoder, "encoder");
        require(images, "images");
        const prtool::Preprocess& spec = encoder->inner.bundle().manifest().preprocess;
        encode_images(encoder->inner, count, keep, embeddings, [&](std::int64_t number, float* out) { prtool::prepare(view_of(images[number]), spec, out); });
    });
}

prtool_status prtool_encode_files(prtool_encoder* encoder, const char* const* paths, int64_t count, prtool_keep keep, float* embeddings) {
    return guarded([&] {
        require(encoder, "encoder");
        require(paths, "paths");
        const prtool::Preprocess& spec = encoder->inner.bundle().manifest().preprocess;
        encode_images(encoder->inner, count, keep, embeddings, [&](std::int64_t number, float* out) {
            require(paths[number], "a path");
            prepare_rgb(prtool::decode_file(paths[number]), spec, out);
        });
    });
}

prtool_status prtool_encode_bytes(prtool_encoder* encoder, const prtool_bytes* images, int64_t count, prtool_keep keep, float* embeddings) {
    return guarded([&] {
        require(encoder, "encoder");
        require(images, "images");
        const prtool::Preprocess& spec = encoder->inner.bundle().manifest().preprocess;
        encode_images(encoder->inner, count, keep, embeddings, [&](std::int64_t number, float* out) {
            const std::string name = "image " + std::to_string(number) + " of " + std::to_string(images[number].size) + " bytes";
            prepare_rgb(prtool::decode_image(images[number].bytes, images[number].size, name), spec, out);
        });
    });
}

prtool_status prtool_prepare_file(const prtool_encoder* encoder, const char* path, float* pixels) {
    return guarded([&] {
        require(encoder, "encoder");
        require(path, "path");
        require(pixels, "pixels");
        prepare_rgb(prtool::decode_file(path), encoder->inner.bundle().manifest().preprocess, pixels);
    });
}

prtool_status prtool_prepare_bytes(const prtool_encoder* encoder, prtool_bytes image, float* pixels) {
    return guarded([&] {
        require(encoder, "encoder");
        require(pixels, "pixels");
        const std::string name = "image of " + std::to_string(image.size) + " bytes";
        prepare_rgb(prtool::decode_image(image.bytes, image.size, name), encoder->inner.bundle().manifest().preprocess, pixels);
    });
}

prtool_status prtool_prepare_rgb(const prtool_encoder* encoder, prtool_rgb image, float* pixels) {
    return guarded([&] {
        require(encoder, "encoder");
        require(pixels, "pixels");
        prtool::prepare(view_of(image), encoder->inner.bundle().manifest().preprocess, pixels);
    });
}

prtool_status prtool_classify(prtool_encoder* encoder, const float* embeddings, int64_t count, int64_t top, int64_t* labels, float* probabilities) {
    return guarded([&] {
        require(encoder, "encoder");
        require(embeddings, "embeddings");
        require(labels, "labels");
        require(probabilities, "probabilities");
        require_count(count);
        encoder->inner.classes().classify(embeddings, count, top, labels, probabilities);
    });
}

const char* prtool_class_name(const prtool_encoder* encoder, int64_t label) {
    if (encoder == nullptr || label < 0 || label >= encoder->info.classes) return nullptr;
    return encoder->inner.bundle().manifest().classes->names[static_cast<std::size_t>(label)].c_str();
}

prtool_status prtool_select(const float* scores, int64_t batch, int64_t patches, int64_t k, int64_t* indices) {
    return guarded([&] {
        require(scores, "scores");
        require(indices, "indices");
        require_count(batch);
        if (patches < 1 || patches > kMostImages) {
            throw Error(Status::shape, "patches = " + std::to_string(patches) + ", but an image has 1 to " + std::to_string(kMostImages));
        }
        const std::vector<std::int64_t> chosen = prtool::select(scores, batch, patches, k);
        std::copy(chosen.begin(), chosen.end(), indices);
    });
}
