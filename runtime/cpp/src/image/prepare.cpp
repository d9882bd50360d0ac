#include "image/prepare.hpp"

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "image/resize.hpp"

namespace prtool {

namespace {

// Of an image that is larger than this after the resize, a strip of more than about 1,200:1, only the centre is resized,
// within 1 of 255 of the exact way.
constexpr std::int64_t kLargestResize = 64'000'000;

struct Size {
    std::int64_t width, height;
};

void check(const RgbView& image) {
    if (image.pixels == nullptr || std::min(image.width, image.height) < 1 || std::max(image.width, image.height) > INT_MAX) {
        throw Error(Status::shape, "an image has " + std::to_string(image.width) + " x " + std::to_string(image.height) + " pixels, but needs 1 to " +
                                       std::to_string(INT_MAX) + " on each side, and a pointer to them");
    }
    if (image.stride < 3 * image.width) {
        throw Error(Status::shape, "stride = " + std::to_string(image.stride) + " bytes, but a row of " + std::to_string(image.width) + " RGB pixels has " +
                                       std::to_string(3 * image.width));
    }
}

// To the nearest whole number, halves to the even one, as Python rounds.
std::int64_t python_round(double value) { return static_cast<std::int64_t>(std::nearbyint(value)); }

// The size after the resize, rounded as torchvision and timm do where it keeps the aspect ratio.
Size scaled(double width, double height, const Preprocess& spec) {
    const std::int64_t target_height = python_round(spec.height * spec.resize_ratio), target_width = python_round(spec.width * spec.resize_ratio);
    if (spec.resize_mode == ResizeMode::squash) return {target_width, target_height};
    if (spec.resize_mode == ResizeMode::shortest && target_height == target_width) {
        // torchvision's Resize truncates the longer side, timm's ResizeKeepRatio below rounds it.
        const auto longer = static_cast<std::int64_t>(static_cast<double>(target_height) * std::max(width, height) / std::min(width, height));
        return width <= height ? Size{target_width, longer} : Size{longer, target_height};
    }
    const double down = height / static_cast<double>(target_height), across = width / static_cast<double>(target_width);
    const double ratio = spec.resize_mode == ResizeMode::longest ? std::max(down, across) : std::min(down, across);
    return {std::max<std::int64_t>(1, python_round(width / ratio)), std::max<std::int64_t>(1, python_round(height / ratio))};
}

// open_clip hands its filter on in every case but this one, where timm's ResizeKeepRatio takes its default.
Interpolation filter_of(const Preprocess& spec) {
    const bool ignored = spec.resize_mode == ResizeMode::shortest && spec.height != spec.width;
    return ignored && spec.interpolation == Interpolation::bilinear ? Interpolation::bicubic : spec.interpolation;
}

// The picture in an image: where it begins, and its sides.
struct Picture {
    double left, top, width, height;
};

Picture picture_in(const RgbView& image) {
    const Margins& beyond = image.margins;
    return {beyond.left, beyond.top, static_cast<double>(image.width) - beyond.left - beyond.right, static_cast<double>(image.height) - beyond.top - beyond.bottom};
}

Box whole(const Picture& picture) {
    const auto edge = [](double place) { return static_cast<float>(place); };
    return {edge(picture.left), edge(picture.top), edge(picture.left + picture.width), edge(picture.top + picture.height)};
}

// All of the resized image.
Scaling to_size(const Picture& picture, const Size& size, const Preprocess& spec) {
    return {size.width, size.height, filter_of(spec), whole(picture), {0, 0, size.width, size.height}};
}

// What of `all` pixels from `first` on becomes the pixels [begin, begin + count), where they would become `target` pixels.
std::pair<float, float> part(double first, double all, std::int64_t target, std::int64_t begin, std::int64_t count) {
    const double step = all / static_cast<double>(target);
    const double end = std::min(static_cast<double>(begin + count) * step, all);
    return {static_cast<float>(first + static_cast<double>(begin) * step), static_cast<float>(first + end)};
}

// The centre of the resized image.
Scaling to_centre(const Picture& picture, const Size& size, const Preprocess& spec) {
    const auto margin = [&spec](std::int64_t all, int kept) {
        const double half = static_cast<double>(all - kept) / 2.0;
        return spec.crop_rounding == CropRounding::floor ? static_cast<std::int64_t>(std::floor(half)) : python_round(half);
    };
    const std::int64_t left = margin(size.width, spec.width), top = margin(size.height, spec.height);
    if (size.width * size.height <= kLargestResize) {
        return {size.width, size.height, filter_of(spec), whole(picture), {left, top, spec.width, spec.height}};
    }
    const auto [box_left, box_right] = part(picture.left, picture.width, size.width, left, spec.width);
    const auto [box_top, box_bottom] = part(picture.top, picture.height, size.height, top, spec.height);
    const Box box{box_left, box_top, box_right, box_bottom};
    return {spec.width, spec.height, filter_of(spec), box, {0, 0, spec.width, spec.height}};
}

// What the encoder sees, before values are normalised: tight rows of the spec's size.
std::vector<std::uint8_t> view(const RgbView& image, const Preprocess& spec) {
    const std::int64_t stride = 3 * static_cast<std::int64_t>(spec.width);
    std::vector<std::uint8_t> seen(static_cast<std::size_t>(stride * spec.height), static_cast<std::uint8_t>(spec.fill));
    const Picture picture = picture_in(image);
    const Size size = scaled(picture.width, picture.height, spec);
    if (spec.resize_mode == ResizeMode::shortest) {
        resize(image, to_centre(picture, size, spec), seen.data(), stride);
    } else {
        const std::int64_t left = (spec.width - size.width) / 2, top = (spec.height - size.height) / 2;
        resize(image, to_size(picture, size, spec), seen.data() + top * stride + 3 * left, stride);
    }
    return seen;
}

// The normalised value of every 8-bit value, in float32 and in the order of operations of ToTensor and Normalize.
std::array<float, 256> table(double mean, double std) {
    std::array<float, 256> values;
    for (int value = 0; value < 256; ++value) {
        const float unit = static_cast<float>(value) / 255.0F;
        values[value] = (unit - static_cast<float>(mean)) / static_cast<float>(std);
    }
    return values;
}

void normalise(const std::vector<std::uint8_t>& seen, const Preprocess& spec, float* out) {
    const std::size_t pixels = seen.size() / 3;
    for (std::size_t channel = 0; channel < 3; ++channel, out += pixels) {
        const std::array<float, 256> values = table(spec.mean[channel], spec.std[channel]);
        for (std::size_t i = 0; i < pixels; ++i) out[i] = values[seen[3 * i + channel]];
    }
}

}  // namespace

std::pair<std::int64_t, std::int64_t> least_size(std::int64_t width, std::int64_t height, const Preprocess& spec) {
    if (spec.interpolation == Interpolation::nearest) return {width, height};
    const Size size = scaled(static_cast<double>(width), static_cast<double>(height), spec);
    return {2 * size.width, 2 * size.height};
}

void prepare(const RgbView& image, const Preprocess& spec, float* out) {
    check(image);
    try {
        normalise(view(image, spec), spec, out);
    } catch (const std::bad_alloc&) {
        throw Error(Status::memory, "the memory does not suffice to resize an image of " + std::to_string(image.width) +
                                        " x " + std::to_string(image.height) + " pixels");
    }
}

}  // namespace prtool
