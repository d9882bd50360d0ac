#include "image/memory.hpp"

#include <algorithm>
#include <string>
#include <string_view>

#include "image/refusal.hpp"

namespace prtool {

namespace {

// Rows of whole 4 bytes, and a pointer to each row.
std::int64_t plane_bytes(std::int64_t width, std::int64_t height, int pixel_bytes) {
    return height * ((width * pixel_bytes + 3) / 4 * 4 + 8);
}

// 1700000000 as "1,700,000,000".
std::string grouped(std::int64_t number) {
    std::string text = std::to_string(number);
    for (std::size_t place = text.size(); place > 3;) text.insert(place -= 3, ",");
    return text;
}

}  // namespace

void check_memory(std::int64_t width, std::int64_t height, const Held& held, bool turned) {
    const bool is_rgb = std::string_view(held.mode) == "RGB";
    const std::int64_t own = plane_bytes(width, height, held.pixel_bytes);
    const std::int64_t decoding = own + std::max(is_rgb ? 0 : plane_bytes(width, height, 4), held.beside * width * height);
    const std::int64_t most = turned ? std::max(decoding, own + plane_bytes(height, width, held.pixel_bytes)) : decoding;
    if (most <= kMaxBytes) return;
    throw Refusal(Status::image, "has " + std::to_string(width) + " x " + std::to_string(height) + " pixels of mode " + held.mode + ", which take " +
                                     grouped(most) + " bytes to decode, but at most " + grouped(kMaxBytes) + " are given; make it smaller first");
}

}  // namespace prtool
