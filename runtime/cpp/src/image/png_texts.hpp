// The texts of a PNG, of which only those count that say how the image is turned.
#pragma once

#include <cstddef>
#include <string_view>

#include "image/exif.hpp"

namespace prtool {

class PngTexts {
public:
    // Reads a chunk tEXt, zTXt or iTXt; others are passed over. Throws Refusal.
    void take(std::string_view name, std::string_view data, OrientationSources& sources);

private:
    void take_compressed(std::string_view data, OrientationSources& sources);
    void take_international(std::string_view data, OrientationSources& sources);
    void store(std::string_view key, std::string_view text, OrientationSources& sources);

    std::size_t bytes_ = 0;  // of all texts so far
};

}  // namespace prtool
