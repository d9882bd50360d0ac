// What both decoders share: numbers in bytes, errors, limits on memory, and how an image is turned.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "errors.hpp"
#include "image/decode.hpp"

namespace prtool {

enum class ByteOrder { big, little };

// The unsigned number that up to 8 bytes spell.
inline std::uint64_t number(std::string_view bytes, ByteOrder order = ByteOrder::big) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        const std::size_t at = order == ByteOrder::big ? i : bytes.size() - 1 - i;
        value = value << 8 | static_cast<std::uint8_t>(bytes[at]);
    }
    return value;
}

inline bool starts_with(std::string_view bytes, std::string_view prefix) { return bytes.substr(0, prefix.size()) == prefix; }

// Why an image is not decoded: the rest of a sentence that begins with the image's name, which decoders do not know.
class DecodeError : public std::runtime_error {
public:
    DecodeError(Status status, const std::string& predicate) : std::runtime_error(predicate), status_(status) {}
    Status status() const noexcept { return status_; }

private:
    Status status_;
};

DecodeError damaged(const std::string& reason);
DecodeError truncated();  // with Pillow's message
DecodeError too_little_memory(std::int64_t width, std::int64_t height);

// Most bytes that Pillow may take to decode an image and convert it to RGB. The limit is known from the header and the Python
// package's, so that both read the same files.
inline constexpr std::int64_t kMaxBytes = 1'700'000'000;

// How Pillow holds the image.
struct Held {
    const char* mode = "RGB";
    int pixel_bytes = 4;
    std::int64_t decoder_bytes = 0;  // per pixel, which its decoder holds in addition
};

// Throw DecodeError: no pixel or more than kMaxPixels; decoding takes more than kMaxBytes, with the turned copy where `turned`.
void check_size(std::int64_t width, std::int64_t height);
void check_memory(std::int64_t width, std::int64_t height, const Held& held, bool turned);

// A black image. Throws DecodeError: see check_size; or the memory does not suffice. To be called before anything else that takes
// memory in proportion to the pixels.
Rgb allocate(std::int64_t width, std::int64_t height);

// Everywhere that a file may say how it is turned, by the rules of Pillow's Image.getexif; the first that is there counts.
struct OrientationSources {
    std::optional<std::string> exif;     // a TIFF directory, with or without "Exif\0\0" before it
    std::optional<std::string> profile;  // the same in hexadecimal, as ImageMagick writes it into PNG texts
    std::string xmp;                     // an XML text
};

// EXIF's orientation, 1 to 8; 1, upright, where there is none or its data are damaged.
int orientation(const OrientationSources& sources);

// The image turned upright; orientation 1 gives it back as it came.
Rgb upright(Rgb image, int orientation);

struct Decoded {
    Rgb image;  // as it is stored
    int orientation;
};

bool is_jpeg(std::string_view file);
bool is_png(std::string_view file);

// Throw DecodeError.
Decoded decode_jpeg(std::string_view file, const LeastSize& least);
Decoded decode_png(std::string_view file);

}  // namespace prtool
