// The two formats: from a file's bytes to RGB as it is stored, and how it is turned.
#pragma once

#include <string_view>

#include "image/decode.hpp"

namespace prtool {

struct Decoded {
    Rgb image;
    int orientation;  // EXIF's, 1 to 8
};

bool is_jpeg(std::string_view file);
bool is_png(std::string_view file);

// Throw Refusal.
Decoded decode_jpeg(std::string_view file);
Decoded decode_png(std::string_view file);

}  // namespace prtool
