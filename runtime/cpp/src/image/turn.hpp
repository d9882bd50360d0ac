// Turns an image upright.
#pragma once

#include "image/decode.hpp"

namespace prtool {

// `orientation` is EXIF's, 1 to 8; 1 gives the image back as it came.
Rgb upright(Rgb image, int orientation);

}  // namespace prtool
