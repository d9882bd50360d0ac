#include "image/refusal.hpp"

#include <new>

namespace prtool {

namespace {

std::string size_text(std::int64_t width, std::int64_t height) {
    return "has " + std::to_string(width) + " x " + std::to_string(height) + " pixels, ";
}

}  // namespace

Refusal damaged(const std::string& reason) {
    return {Status::image, "is damaged, truncated or unsupported: " + reason};
}

Refusal truncated() { return damaged("image file is truncated"); }

Refusal too_little_memory(std::int64_t width, std::int64_t height) {
    return {Status::memory, size_text(width, height) + "for which the memory does not suffice"};
}

Rgb allocate(std::int64_t width, std::int64_t height) {
    if (width < 1 || height < 1) throw damaged(size_text(width, height) + "but needs at least 1 x 1");
    if (width > kMaxPixels / height) {
        static_assert(kMaxPixels == 256'000'000, "the message names the limit");
        throw Refusal(Status::image,
                      size_text(width, height) + "but at most 256,000,000 are decoded; make it smaller first");
    }
    Rgb image{width, height, {}};
    try {
        image.pixels.resize(static_cast<std::size_t>(3 * width * height));
    } catch (const std::bad_alloc&) {
        throw too_little_memory(width, height);
    }
    return image;
}

}  // namespace prtool
