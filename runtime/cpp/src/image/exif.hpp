// How a photograph is turned, by the rules of Pillow's Image.getexif.
#pragma once

#include <optional>
#include <string>

namespace prtool {

// Everywhere that a file may say how it is turned; the first that speaks counts.
struct OrientationSources {
    std::optional<std::string> exif;     // a TIFF directory, with or without "Exif\0\0" before it
    std::optional<std::string> profile;  // the same in hexadecimal, as ImageMagick writes it into PNG texts
    std::string xmp;                     // an XML text
};

// The EXIF orientation; 1, upright, where there is none or its data are damaged.
int orientation(const OrientationSources& sources);

}  // namespace prtool
