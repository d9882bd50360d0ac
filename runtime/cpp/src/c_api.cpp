// The C API over the encoder: every exception becomes a status and a message of the calling thread.
#include <algorithm>
#include <cstring>
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
        if (keep.length < 0) throw Error(Status::keep, "keep has a list of " + std::to_string(keep.length) + " counts; give one for each location");
        return {std::vector<std::int64_t>(keep.counts, keep.counts + keep.length)};
    }
    if (keep.ratio != 0.0) return {keep.ratio};
    if (keep.count != 0) return {keep.count};
    return {Keep::Default{}};
}

// The caller's fields over the defaults, as far as its header knew them. Every version has whole groups of 8 bytes.
prtool_options complete(const prtool_options* given) {
    prtool_options options = prtool_options_default();
    if (given == nullptr) return options;
    const std::size_t size = given->struct_size;
    if (size < sizeof(options.struct_size) || size > sizeof(options) || size % alignof(prtool_options) != 0) {
        throw Error(Status::config, "options.struct_size = " + std::to_string(size) + ", but this library knows up to " + std::to_string(sizeof(options)) +
                                        " bytes; start from prtool_options_default()");
    }
    std::memcpy(&options, given, size);
    return options;
}

prtool::EncoderOptions options_of(const prtool_options* given) {
    const prtool_options all = complete(given);
    if (all.threads < 0) throw Error(Status::config, "threads = " + std::to_string(all.threads) + ", but it must be 0 (all) or more");
    if (all.device < 0) throw Error(Status::config, "device = " + std::to_string(all.device) + ", but GPUs are counted from 0");
    prtool::EncoderOptions options;
    if (all.engine != nullptr) options.engine = all.engine;
    if (all.mode != nullptr) options.mode = all.mode;
    if (all.precision != nullptr) options.settings.precision = all.precision;
    if (all.cache != nullptr) options.settings.cache = all.cache;
    options.settings.threads = all.threads;
    options.settings.spinning = all.spinning != 0;
    options.settings.device = all.device;
    options.settings.cuda_graphs = all.cuda_graphs != 0;
    options.verify = all.verify != 0;
    options.jpeg_scaling = all.jpeg_scaling != 0;
    return options;
}

prtool_info info_of(const prtool::Encoder& encoder) {
    const prtool::Manifest& manifest = encoder.bundle().manifest();
    prtool_info info{};
    info.embed_dim = manifest.model.embed_dim;
    info.image_height = encoder.preprocess().height;
    info.image_width = encoder.preprocess().width;
    info.patches = manifest.prune.patches();
    info.default_keep = manifest.default_keep;
    info.min_keep = manifest.min_keep;
    info.max_keep = manifest.max_keep;
    info.locations = static_cast<std::int64_t>(manifest.prune.locations.size());
    info.classes = manifest.classes ? static_cast<std::int64_t>(manifest.classes->names.size()) : 0;
    info.method = prtool::method_name(manifest.prune.method);
    info.model = manifest.model.name.c_str();
    info.engine = encoder.info().name.c_str();
    info.engine_version = encoder.info().version.c_str();
    info.device = encoder.info().device.c_str();
    return info;
}

void prepare_rgb(const prtool::Rgb& image, const prtool::Preprocess& spec, float* out) {
    prtool::prepare({image.pixels.data(), image.width, image.height, 3 * image.width, image.margins}, spec, out);
}

// One image as the caller holds it, to pixels; `place` is its number in the call.
void prepare(const char* path, std::int64_t, const prtool::Encoder& encoder, float* out) {
    require(path, "a path");
    prepare_rgb(prtool::decode_file(path, encoder.least_size()), encoder.preprocess(), out);
}

void prepare(const prtool_bytes& image, std::int64_t place, const prtool::Encoder& encoder, float* out) {
    const std::string name = "image " + std::to_string(place) + " of " + std::to_string(image.size) + " bytes";
    prepare_rgb(prtool::decode_image(image.bytes, image.size, name, encoder.least_size()), encoder.preprocess(), out);
}

void prepare(const prtool_rgb& image, std::int64_t, const prtool::Encoder& encoder, float* out) {
    const bool tight = image.stride == 0 && image.width <= prtool::kMaxPixels;
    prtool::prepare({image.pixels, image.width, image.height, tight ? 3 * image.width : image.stride, {}}, encoder.preprocess(), out);
}

// Prepares and encodes images, part after part; the embeddings are (count, embed_dim).
template <typename Image>
std::vector<float> encode_images(const prtool_encoder* encoder, const Image* images, std::int64_t count, const prtool_keep& keep) {
    require(encoder, "encoder");
    require(images, "images");
    require_count(count);
    const Keep wanted = keep_of(keep);
    const prtool::Encoder& inner = encoder->inner;
    const std::size_t each = inner.pixels_per_image();
    std::vector<float> pixels(each * static_cast<std::size_t>(std::min(count, kImagesAtOnce)));
    std::vector<float> found(static_cast<std::size_t>(count * encoder->info.embed_dim));
    for (std::int64_t start = 0; start < count; start += kImagesAtOnce) {
        const std::int64_t part = std::min(kImagesAtOnce, count - start);
        for (std::int64_t place = 0; place < part; ++place) {
            prepare(images[start + place], start + place, inner, pixels.data() + static_cast<std::size_t>(place) * each);
        }
        inner.encode_pixels(pixels.data(), part, wanted, found.data() + start * encoder->info.embed_dim);
    }
    return found;
}

template <typename Image>
prtool_status encode(const prtool_encoder* encoder, const Image* images, std::int64_t count, const prtool_keep& keep, float* embeddings) {
    return guarded([&] {
        require(embeddings, "embeddings");
        const std::vector<float> found = encode_images(encoder, images, count, keep);
        std::copy(found.begin(), found.end(), embeddings);
    });
}

template <typename Image>
prtool_status prepare_one(const prtool_encoder* encoder, const Image& image, float* pixels) {
    return guarded([&] {
        require(encoder, "encoder");
        require(pixels, "pixels");
        prepare(image, 0, encoder->inner, pixels);
    });
}

void classify(const prtool_encoder* encoder, const float* embeddings, std::int64_t count, std::int64_t top, std::int64_t* labels, float* probabilities) {
    require(encoder, "encoder");
    require(embeddings, "embeddings");
    require(labels, "labels");
    require(probabilities, "probabilities");
    require_count(count);
    encoder->inner.classes().classify(embeddings, count, top, labels, probabilities);
}

template <typename Image>
prtool_status classify_images(
    const prtool_encoder* encoder, const Image* images, std::int64_t count, const prtool_keep& keep, std::int64_t top, std::int64_t* labels, float* probabilities) {
    return guarded([&] {
        require(encoder, "encoder");
        encoder->inner.classes();  // a bundle without them is an error before the work
        classify(encoder, encode_images(encoder, images, count, keep).data(), count, top, labels, probabilities);
    });
}

void require_tensors(const prtool_encoder* encoder, const float* pixels, std::int64_t batch, const float* embeddings) {
    require(encoder, "encoder");
    require(pixels, "pixels");
    require(embeddings, "embeddings");
    require_count(batch);
}

#define PRTOOL_TEXT(number) PRTOOL_TEXT_OF(number)
#define PRTOOL_TEXT_OF(number) #number

}  // namespace

const char* prtool_last_error(void) {
    return last_error.c_str();
}

const char* prtool_status_string(int status) {
    static const char* const kTexts[] = {"success",           "invalid option or argument", "keep out of range",  "wrong shape or NaN score",
                                         "unreadable folder", "undecodable image",          "invalid bundle",     "engine failed",
                                         "engine unavailable", "file not written",          "out of memory",      "internal error"};
    const auto number = static_cast<std::size_t>(status);
    return number < std::size(kTexts) ? kTexts[number] : "unknown status";
}

const char* prtool_version(void) {
    return PRTOOL_TEXT(PRTOOL_VERSION_MAJOR) "." PRTOOL_TEXT(PRTOOL_VERSION_MINOR) "." PRTOOL_TEXT(PRTOOL_VERSION_PATCH);
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

void prtool_free(prtool_encoder* encoder) {
    delete encoder;
}

const prtool_info* prtool_get_info(const prtool_encoder* encoder) {
    return encoder == nullptr ? nullptr : &encoder->info;
}

prtool_keep prtool_keep_default(void) {
    return {0.0, 0, nullptr, 0};
}

prtool_keep prtool_keep_ratio(double ratio) {
    // Zero stands for "no ratio"; a caller that passes it gets the error of a ratio out of range.
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
        require_tensors(encoder, pixels, batch, embeddings);
        encoder->inner.encode_pixels(pixels, batch, keep_of(keep), embeddings);
    });
}

prtool_status prtool_encode_device_pixels(prtool_encoder* encoder, const float* pixels, int64_t batch, prtool_keep keep, float* embeddings, void* stream) {
    return guarded([&] {
        require_tensors(encoder, pixels, batch, embeddings);
        encoder->inner.encode_device_pixels(pixels, batch, keep_of(keep), embeddings, stream);
    });
}

prtool_status prtool_encode_rgb(prtool_encoder* encoder, const prtool_rgb* images, int64_t count, prtool_keep keep, float* embeddings) {
    return encode(encoder, images, count, keep, embeddings);
}

prtool_status prtool_encode_files(prtool_encoder* encoder, const char* const* paths, int64_t count, prtool_keep keep, float* embeddings) {
    return encode(encoder, paths, count, keep, embeddings);
}

prtool_status prtool_encode_bytes(prtool_encoder* encoder, const prtool_bytes* images, int64_t count, prtool_keep keep, float* embeddings) {
    return encode(encoder, images, count, keep, embeddings);
}

prtool_status prtool_prepare_file(const prtool_encoder* encoder, const char* path, float* pixels) {
    return prepare_one(encoder, path, pixels);
}

prtool_status prtool_prepare_bytes(const prtool_encoder* encoder, prtool_bytes image, float* pixels) {
    return prepare_one(encoder, image, pixels);
}

prtool_status prtool_prepare_rgb(const prtool_encoder* encoder, prtool_rgb image, float* pixels) {
    return prepare_one(encoder, image, pixels);
}

prtool_status prtool_classify(prtool_encoder* encoder, const float* embeddings, int64_t count, int64_t top, int64_t* labels, float* probabilities) {
    return guarded([&] { classify(encoder, embeddings, count, top, labels, probabilities); });
}

prtool_status prtool_classify_files(
    prtool_encoder* encoder, const char* const* paths, int64_t count, prtool_keep keep, int64_t top, int64_t* labels, float* probabilities) {
    return classify_images(encoder, paths, count, keep, top, labels, probabilities);
}

prtool_status prtool_classify_bytes(
    prtool_encoder* encoder, const prtool_bytes* images, int64_t count, prtool_keep keep, int64_t top, int64_t* labels, float* probabilities) {
    return classify_images(encoder, images, count, keep, top, labels, probabilities);
}

prtool_status prtool_classify_rgb(
    prtool_encoder* encoder, const prtool_rgb* images, int64_t count, prtool_keep keep, int64_t top, int64_t* labels, float* probabilities) {
    return classify_images(encoder, images, count, keep, top, labels, probabilities);
}

const char* prtool_class_name(const prtool_encoder* encoder, int64_t label) {
    if (encoder == nullptr || label < 0 || label >= encoder->info.classes) return nullptr;
    return encoder->inner.bundle().manifest().classes->names[static_cast<std::size_t>(label)].c_str();
}
