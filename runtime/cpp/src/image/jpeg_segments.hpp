// What a JPEG holds before its pixels, read by Pillow's rules.
#pragma once

#include <cstdint>
#include <string_view>

#include "image/decoding.hpp"

namespace prtool {

struct JpegFacts {
    std::int64_t width = 0;
    std::int64_t height = 0;
    int components = 0;  // 1 grey, 3 colours, 4 inks
    OrientationSources sources;
};

// Reads up to the first scan. libjpeg reads the same segments again, but accepts some files that Pillow rejects, and
// says nothing of EXIF. Throws DecodeError.
JpegFacts read_jpeg_segments(std::string_view file);

}  // namespace prtool
