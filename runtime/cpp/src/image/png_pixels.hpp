// From the compressed image data of a PNG to RGB pixels, by Pillow's rules.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "image/decode.hpp"
#include "image/inflate.hpp"
#include "image/png_facts.hpp"

namespace prtool {

class PngPixels {
public:
    // Writes into `image`, which must outlive it and have the size that `facts` say. Throws Refusal.
    PngPixels(const PngFacts& facts, Rgb& image);

    // Takes the next piece of the compressed data. True once the image is complete: the rest does not matter.
    bool take(std::string_view piece);

private:
    void fill_with_first_colour();
    void start_pass();
    bool advance();
    void unfilter();
    const std::uint8_t* unpacked();
    void write_row();

    Rgb& image_;
    PngLayout layout_;
    PngRegion region_;
    bool interlaced_;
    std::array<std::array<std::uint8_t, 3>, 256> colours_{};  // of each value, for grey and palettes
    Inflater inflater_;
    std::vector<std::uint8_t> row_;       // the number of a filter, and the bytes of a row
    std::vector<std::uint8_t> previous_;  // the same of the row before, without its filter
    std::vector<std::uint8_t> values_;    // a byte a pixel, for those of less than 8 bits
    std::int64_t pixels_ = 0;             // of a row
    std::size_t row_bytes_ = 0;           // of a row, without the filter
    std::size_t filled_ = 0;              // bytes of row_ that have come so far
    std::size_t pass_ = 0;
    std::int64_t y_ = 0;
};

}  // namespace prtool
