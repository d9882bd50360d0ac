// JPEG and PNG files made in memory, for tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "errors.hpp"
#include "image/decode.hpp"

namespace prtool::test {

using Bytes = std::vector<std::uint8_t>;

// Reproducible noise.
Bytes noise(std::size_t size, unsigned seed = 0);

// Numbers as they stand in files.
std::string big16(unsigned value);
std::string big32(unsigned value);

// An EXIF block ("Exif\0\0" and a TIFF directory) that holds an orientation and nothing else.
std::string exif(int orientation, bool little_endian = false);

struct Png {
    unsigned width = 0, height = 0;
    int depth = 8, colour = 2;  // PNG's numbers
    Bytes samples = {};         // tight rows, each padded to a whole byte
    bool interlaced = false;    // `samples` then holds the rows of all passes
    int filter = 0;             // number written before each row; the rows are stored as they are
    std::string before = {};    // chunks between header and image data, and behind them
    std::string after = {};
};

std::string packed(const std::string& data);  // by zlib
std::string chunk(const std::string& name, const std::string& data);
std::string encoded(const Png& png);

// `components` is 1 (grey), 3 (RGB) or 4 (CMYK); with an EXIF block where it is not empty.
std::string jpeg(const Bytes& pixels, unsigned width, unsigned height, int components, const std::string& exif_block = "");

Rgb decoded(const std::string& file);

// The message that the file is rejected with; "" where it is read. `status` receives the error's status.
std::string error_of(const std::string& file, Status* status = nullptr);

}  // namespace prtool::test
