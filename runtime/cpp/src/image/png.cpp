// PNG, decoded by libspng.
#include <spng.h>

#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "image/decoding.hpp"

namespace prtool {

namespace {

// Most bytes of texts and profiles of one file, unpacked: small files can hold gigabytes.
constexpr std::size_t kMaxTextBytes = std::size_t{64} << 20;

class PngDecoder {
public:
    explicit PngDecoder(std::string_view file) : context_(spng_ctx_new(0), spng_ctx_free) {
        if (context_ == nullptr) throw std::bad_alloc();
        require(spng_set_chunk_limits(context_.get(), kMaxTextBytes, kMaxTextBytes));
        require(spng_set_png_buffer(context_.get(), file.data(), file.size()));
        require(spng_get_ihdr(context_.get(), &header_));
    }

    Decoded decode() {
        const std::int64_t width = header_.width, height = header_.height;
        check_size(width, height);
        check_memory(width, height, held(), false);
        OrientationSources sources = orientation_sources();
        Rgb image = allocate(width, height);
        require(spng_decode_image(context_.get(), image.pixels.data(), image.pixels.size(), SPNG_FMT_RGB8, 0));
        // Once all pixels are there, a damaged or missing end is ignored, as Pillow does; the orientation may be stored after them.
        if (spng_decode_chunks(context_.get()) == SPNG_OK) sources = orientation_sources();
        const int turned = orientation(sources);
        if (turned != 1) check_memory(width, height, held(), true);
        return {std::move(image), turned};
    }

private:
    void require(int status) const {
        if (status == SPNG_EMEM) throw too_little_memory(header_.width, header_.height);
        if (status != SPNG_OK) throw damaged(spng_strerror(status));
    }
    // The mode in which Pillow holds the image.
    Held held() const {
        switch (header_.color_type) {
            case SPNG_COLOR_TYPE_TRUECOLOR: return {"RGB", 4};
            case SPNG_COLOR_TYPE_TRUECOLOR_ALPHA: return {"RGBA", 4};
            case SPNG_COLOR_TYPE_GRAYSCALE_ALPHA: return {"LA", 4};
            case SPNG_COLOR_TYPE_INDEXED: return {"P", 1};
            default: break;
        }
        if (header_.bit_depth == 16) return {"I;16", 2};
        return {header_.bit_depth == 1 ? "1" : "L", 1};
    }

    // From the chunks that have been read so far.
    OrientationSources orientation_sources() const {
        OrientationSources sources;
        spng_exif exif{};
        if (spng_get_exif(context_.get(), &exif) == SPNG_OK) sources.exif = std::string(exif.data, exif.length);
        std::uint32_t count = 0;
        if (spng_get_text(context_.get(), nullptr, &count) != SPNG_OK) return sources;
        std::vector<spng_text> texts(count);
        require(spng_get_text(context_.get(), texts.data(), &count));
        for (const spng_text& text : texts) {
            const std::string_view key = text.keyword;
            if (key == "Raw profile type exif") sources.profile = std::string(text.text, text.length);
            if (key == "XML:com.adobe.xmp") sources.xmp = std::string(text.text, text.length);
        }
        return sources;
    }

    std::unique_ptr<spng_ctx, void (*)(spng_ctx*)> context_;
    spng_ihdr header_{};
};

}  // namespace

bool is_png(std::string_view file) { return starts_with(file, "\x89PNG\r\n\x1A\n"); }

Decoded decode_png(std::string_view file) { return PngDecoder(file).decode(); }

}  // namespace prtool
