// What the chunks of a PNG say besides its pixels, read by Pillow's rules.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "image/exif.hpp"
#include "image/png_texts.hpp"

namespace prtool {

// How a pixel is stored. The numbers are PNG's colour types.
enum class PngColour { grey = 0, rgb = 2, palette = 3, grey_alpha = 4, rgb_alpha = 6 };

struct PngLayout {
    PngColour colour;
    int depth;  // bits a sample

    int bits() const;  // a pixel
};

// A rectangle of the image, in pixels.
struct PngRegion {
    std::int64_t left, top, width, height;
};

class PngFacts {
public:
    // Reads one chunk other than IDAT and IEND; unknown ones are passed over. Throws Refusal.
    void take(std::string_view name, std::string_view data);

    std::int64_t width = 0;
    std::int64_t height = 0;
    std::optional<PngLayout> layout;  // none before a header of a known kind
    bool interlaced = false;
    std::string_view palette;
    std::optional<PngRegion> frame;             // of an animation: where the image data that follow belong
    std::optional<std::uint64_t> frame_count;   // of an animation
    OrientationSources sources;

private:
    void take_header(std::string_view data);
    void take_transparency(std::string_view data) const;
    void take_animation(std::string_view data);
    void take_frame(std::string_view data);
    void take_sequence_number(std::uint64_t found);

    PngTexts texts_;
    std::optional<std::uint64_t> sequence_number_;
};

}  // namespace prtool
