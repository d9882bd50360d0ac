#include "image/png_facts.hpp"

#include <array>
#include <string>

#include "image/bytes.hpp"
#include "image/inflate.hpp"
#include "image/refusal.hpp"

namespace prtool {

namespace {

// Chunks that Pillow refuses when they are shorter.
struct Shortest {
    std::string_view name;
    std::size_t bytes;
};
constexpr std::array<Shortest, 9> kShortest = {{{"IHDR", 13},
                                                {"gAMA", 4},
                                                {"cHRM", 32},
                                                {"sRGB", 1},
                                                {"pHYs", 9},
                                                {"iCCP", 1},
                                                {"acTL", 8},
                                                {"fcTL", 26},
                                                {"fdAT", 4}}};

void check_length(std::string_view name, std::string_view data) {
    for (const Shortest& shortest : kShortest) {
        if (name == shortest.name && data.size() < shortest.bytes) {
            throw damaged("Truncated " + std::string(name) + " chunk");
        }
    }
}

bool is_allowed(std::uint64_t colour, std::uint64_t depth) {
    const bool small = depth == 1 || depth == 2 || depth == 4;
    if (colour == 0) return small || depth == 8 || depth == 16;
    if (colour == 3) return small || depth == 8;
    return (colour == 2 || colour == 4 || colour == 6) && (depth == 8 || depth == 16);
}

// The colour profile is not used, but Pillow refuses images with an unreadable one.
void check_profile(std::string_view data) {
    const std::size_t name_end = data.find('\0');
    const std::size_t method = name_end == data.npos ? 0 : name_end + 1;
    if (method >= data.size() || data[method] != 0) throw damaged("Unknown compression method in iCCP chunk");
    inflate_text(data.substr(method + 1));
}

}  // namespace

int PngLayout::bits() const {
    switch (colour) {
        case PngColour::rgb: return 3 * depth;
        case PngColour::grey_alpha: return 2 * depth;
        case PngColour::rgb_alpha: return 4 * depth;
        default: return depth;
    }
}

void PngFacts::take(std::string_view name, std::string_view data) {
    check_length(name, data);
    if (name == "IHDR") {
        take_header(data);
    } else if (name == "PLTE") {
        if (layout && layout->colour == PngColour::palette) palette = data;
    } else if (name == "tRNS") {
        take_transparency(data);
    } else if (name == "iCCP") {
        check_profile(data);
    } else if (name == "eXIf") {
        sources.exif = std::string("Exif\0\0", 6).append(data);
    } else if (name == "acTL") {
        take_animation(data);
    } else if (name == "fcTL") {
        take_frame(data);
    } else if (name == "fdAT") {
        take_sequence_number(number(data.substr(0, 4)));
    } else {
        texts_.take(name, data, sources);
    }
}

void PngFacts::take_header(std::string_view data) {
    width = static_cast<std::int64_t>(number(data.substr(0, 4)));
    height = static_cast<std::int64_t>(number(data.substr(4, 4)));
    const std::uint64_t depth = number(data.substr(8, 1));
    const std::uint64_t colour = number(data.substr(9, 1));
    if (is_allowed(colour, depth)) layout = PngLayout{static_cast<PngColour>(colour), static_cast<int>(depth)};
    if (data[11] != 0) throw damaged("unknown filter category");
    if (data[12] != 0) interlaced = true;
}

// Transparency is dropped, but Pillow refuses images where it does not fit to the colours.
void PngFacts::take_transparency(std::string_view data) const {
    if (!layout) return;
    const bool is_short = (layout->colour == PngColour::grey && data.size() < 2) ||
                          (layout->colour == PngColour::rgb && data.size() < 6);
    if (is_short) throw damaged("Truncated tRNS chunk");
    if (layout->colour == PngColour::palette && data.size() > 256) throw damaged("outside palette");
}

void PngFacts::take_animation(std::string_view data) {
    constexpr std::uint64_t most_frames = 0x80000000;
    const std::uint64_t count = number(data.substr(0, 4));
    if (frame_count) {
        frame_count.reset();
    } else if (count > 0 && count <= most_frames) {
        frame_count = count;
    }
}

void PngFacts::take_frame(std::string_view data) {
    take_sequence_number(number(data.substr(0, 4)));
    std::array<std::int64_t, 4> sides;
    for (std::size_t i = 0; i < 4; ++i) sides[i] = static_cast<std::int64_t>(number(data.substr(4 + 4 * i, 4)));
    const PngRegion region{sides[2], sides[3], sides[0], sides[1]};
    if (region.left + region.width > width || region.top + region.height > height) {
        throw damaged("APNG contains invalid frames");
    }
    frame = region;
}

void PngFacts::take_sequence_number(std::uint64_t found) {
    if (found != (sequence_number_ ? *sequence_number_ + 1 : 0)) throw damaged("APNG contains frame sequence errors");
    sequence_number_ = found;
}

}  // namespace prtool
