// The encoder that an application embeds: a bundle and one engine, from images to embeddings.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "classes.hpp"
#include "engine.hpp"
#include "image/decode.hpp"
#include "image/prepare.hpp"
#include "pipeline.hpp"

namespace prtool {

struct EncoderOptions {
    std::string engine = "ort";
    std::string mode = "fused";
    EngineSettings settings;
    bool verify = true;
    bool jpeg_scaling = false;  // decode large JPEGs at 1/2, 1/4 or 1/8 of their size
};

// Every method may be called from many threads at once.
class Encoder {
public:
    Encoder(const std::string& bundle, const EncoderOptions& options);

    const Bundle& bundle() const { return bundle_; }
    const EngineInfo& info() const { return info_; }
    // How an image becomes the pixels of the mode: those of mode "full" have the unpruned model's size.
    const Preprocess& preprocess() const { return preprocess_; }
    std::size_t pixels_per_image() const;

    // What of an image has to be decoded; an empty function for all of its pixels.
    const LeastSize& least_size() const { return least_size_; }

    // pixels: (batch, 3, height, width) float32, batch at least 1; embeddings: (batch, E), each of length 1.
    // Throws Error(Status::keep | engine); an embedding that is not finite is an engine's error.
    void encode_pixels(const float* pixels, std::int64_t batch, const Keep& keep, float* embeddings) const;

    // The same from and to the memory of the engine's GPU, in the order of the cudaStream_t `stream`; may return before it is
    // done, so embeddings are not checked. Throws Error(Status::config): the engine works in host memory.
    void encode_device_pixels(const float* pixels, std::int64_t batch, const Keep& keep, float* embeddings, void* stream) const;

    // Throws Error(Status::bundle): the bundle has no classes, or their file does not fit.
    const ClassTable& classes() const;

private:
    Encoder(const std::string& bundle, const EncoderOptions& options, std::unique_ptr<Engine> engine);
    std::vector<std::int64_t> counts_of(const Keep& keep) const;

    Bundle bundle_;
    std::string mode_;
    Preprocess preprocess_;
    LeastSize least_size_;
    EngineInfo info_;
    std::unique_ptr<Pipeline> pipeline_;
    mutable std::mutex lock_;
    mutable std::unique_ptr<ClassTable> classes_;
};

}  // namespace prtool
