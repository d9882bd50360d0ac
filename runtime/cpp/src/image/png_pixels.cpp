#include "image/png_pixels.hpp"

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>

#include "image/refusal.hpp"

namespace prtool {

namespace {

// The pixels of each of the seven passes of an interlaced image; all of them, for others.
struct Pass {
    std::int64_t left, top, across, down;
};
constexpr std::array<Pass, 7> kPasses = {
    {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}}};
constexpr Pass kWhole = {0, 0, 1, 1};

// The colour that each value of a grey or palette image stands for. Values beyond the palette are black.
std::array<std::array<std::uint8_t, 3>, 256> colour_table(const PngLayout& layout, std::string_view palette) {
    std::array<std::array<std::uint8_t, 3>, 256> table{};
    if (layout.colour == PngColour::palette) {
        if (palette.size() / 3 > table.size()) throw damaged("invalid palette size");
        for (std::size_t i = 0; i < palette.size() / 3; ++i) {
            for (std::size_t c = 0; c < 3; ++c) table[i][c] = static_cast<std::uint8_t>(palette[3 * i + c]);
        }
        return table;
    }
    const unsigned highest = (1U << std::min(layout.depth, 8)) - 1;
    for (unsigned i = 0; i <= highest; ++i) table[i].fill(static_cast<std::uint8_t>(i * 255 / highest));
    return table;
}

std::uint8_t nearest_of_three(int left, int up, int corner) {
    const int to_left = std::abs(up - corner), to_up = std::abs(left - corner);
    const int to_corner = std::abs(left + up - 2 * corner);
    if (to_left <= to_up && to_left <= to_corner) return static_cast<std::uint8_t>(left);
    return static_cast<std::uint8_t>(to_up <= to_corner ? up : corner);
}

}  // namespace

PngPixels::PngPixels(const PngFacts& facts, Rgb& image)
    : image_(image),
      layout_(*facts.layout),
      region_(facts.frame.value_or(PngRegion{0, 0, facts.width, facts.height})),
      interlaced_(facts.interlaced),
      colours_(colour_table(layout_, facts.palette)) {
    if (region_.width < 1 || region_.height < 1) throw damaged("tile cannot extend outside image");
    if (region_.width > INT_MAX / layout_.bits() - 7) throw too_little_memory(facts.width, facts.height);
    const auto longest = static_cast<std::size_t>(layout_.bits() * region_.width + 7) / 8;
    row_.resize(1 + longest);
    previous_.resize(1 + longest);
    if (layout_.depth < 8) values_.resize(static_cast<std::size_t>(region_.width));
    start_pass();
    if (layout_.colour == PngColour::palette) fill_with_first_colour();
}

// What a short file leaves out is the value 0, which in a palette need not be black.
void PngPixels::fill_with_first_colour() {
    const std::array<std::uint8_t, 3>& colour = colours_[0];
    if (colour == std::array<std::uint8_t, 3>{}) return;
    for (std::size_t i = 0; i < image_.pixels.size(); i += 3) std::memcpy(&image_.pixels[i], colour.data(), 3);
}

void PngPixels::start_pass() {
    const Pass& pass = interlaced_ ? kPasses[pass_] : kWhole;
    pixels_ = (region_.width - pass.left + pass.across - 1) / pass.across;
    row_bytes_ = static_cast<std::size_t>(pixels_ * layout_.bits() + 7) / 8;
    y_ = pass.top;
}

bool PngPixels::take(std::string_view piece) {
    inflater_.feed(piece);
    while (inflater_.unread() > 0) {
        std::size_t written = 0;
        const int status = inflater_.write(row_.data() + filled_, 1 + row_bytes_ - filled_, written);
        if (status < 0) throw damaged("broken data stream when reading image file");
        filled_ += written;
        if (filled_ <= row_bytes_) return false;
        filled_ = 0;
        unfilter();
        write_row();
        // Where the data end between two rows, Pillow takes what has come.
        if (advance() || status == Z_STREAM_END) return true;
        row_.swap(previous_);
    }
    return false;
}

// Goes to the next row, in the next pass that has one. True at the end.
bool PngPixels::advance() {
    y_ += interlaced_ ? kPasses[pass_].down : 1;
    if (!interlaced_) return y_ >= region_.height;
    while (y_ >= region_.height || row_bytes_ == 0) {
        if (++pass_ == kPasses.size()) return true;
        start_pass();
        std::fill(row_.begin(), row_.end(), std::uint8_t{0});  // the first row of a pass has none before it
    }
    return false;
}

void PngPixels::unfilter() {
    const std::size_t back = static_cast<std::size_t>(layout_.bits() + 7) / 8;  // bytes to the pixel on the left
    const std::size_t end = 1 + row_bytes_;
    std::uint8_t* row = row_.data();
    const std::uint8_t* up = previous_.data();
    const auto add = [](std::uint8_t& value, int prediction) { value = static_cast<std::uint8_t>(value + prediction); };
    const std::size_t start = std::min(1 + back, end);
    switch (row[0]) {
        case 0: break;
        case 1:
            for (std::size_t i = start; i < end; ++i) add(row[i], row[i - back]);
            break;
        case 2:
            for (std::size_t i = 1; i < end; ++i) add(row[i], up[i]);
            break;
        case 3:
            for (std::size_t i = 1; i < start; ++i) add(row[i], up[i] / 2);
            for (std::size_t i = start; i < end; ++i) add(row[i], (row[i - back] + up[i]) / 2);
            break;
        case 4:
            for (std::size_t i = 1; i < start; ++i) add(row[i], up[i]);
            for (std::size_t i = start; i < end; ++i) add(row[i], nearest_of_three(row[i - back], up[i], up[i - back]));
            break;
        default: throw damaged("unknown filter of a row of pixels");
    }
}

// One byte for each of the row's pixels, which take 1, 2 or 4 bits.
const std::uint8_t* PngPixels::unpacked() {
    const int depth = layout_.depth, highest = (1 << depth) - 1;
    const std::uint8_t* packed = row_.data() + 1;
    int shift = 8;
    for (std::uint8_t* value = values_.data(); value != values_.data() + pixels_; ++value) {
        shift -= depth;
        *value = static_cast<std::uint8_t>(*packed >> shift & highest);
        if (shift > 0) continue;
        shift = 8;
        ++packed;
    }
    return values_.data();
}

void PngPixels::write_row() {
    const Pass& pass = interlaced_ ? kPasses[pass_] : kWhole;
    // Pillow puts an interlaced frame of an animation to the corner of the image.
    const std::int64_t left = interlaced_ ? 0 : region_.left, top = interlaced_ ? 0 : region_.top;
    std::uint8_t* out = image_.pixels.data() + 3 * ((top + y_) * image_.width + left + pass.left);
    const std::uint8_t* pixel = layout_.depth < 8 ? unpacked() : row_.data() + 1;
    const int step = std::max(1, layout_.bits() / 8);
    if (layout_.colour == PngColour::rgb || layout_.colour == PngColour::rgb_alpha) {
        const int green = layout_.depth / 8, blue = 2 * green;  // of two bytes, the first is the high one, and is taken
        for (std::int64_t i = 0; i < pixels_; ++i, out += 3 * pass.across, pixel += step) {
            out[0] = pixel[0];
            out[1] = pixel[green];
            out[2] = pixel[blue];
        }
    } else {
        for (std::int64_t i = 0; i < pixels_; ++i, out += 3 * pass.across, pixel += step) {
            std::memcpy(out, colours_[*pixel].data(), 3);
        }
    }
}

}  // namespace prtool
