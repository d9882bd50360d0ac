#include "image/resize.hpp"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "image/kernels.hpp"

namespace prtool {

namespace {

// Every formula here is computed in PIL's order of operations: another one gives other last bits.
double bilinear(double x) {
    x = std::abs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

std::int32_t fixed_point(double weight) {
    return static_cast<std::int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kWeightBits));
}

// How far the filter reaches around the centre of a target pixel, in pixels of the source.
struct Reach {
    Reach(const Axis& axis, Interpolation filter)
        : scale(static_cast<double>(axis.end - axis.begin) / static_cast<double>(axis.target)),
          filter_scale(std::max(scale, 1.0)),
          support((filter == Interpolation::bicubic ? 2.0 : 1.0) * filter_scale) {}

    std::int64_t most_taps() const { return static_cast<std::int64_t>(std::ceil(support)) * 2 + 1; }

    double scale, filter_scale, support;
};

// The weights of the source pixels from `first` on, of which the sum is 1.
void weigh(double center, std::int64_t first, const Reach& reach, Interpolation filter, std::vector<double>& weights) {
    const auto curve = filter == Interpolation::bicubic ? bicubic : bilinear;
    const double inverse = 1.0 / reach.filter_scale;
    double sum = 0.0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
        weights[i] = curve((static_cast<double>(first + static_cast<std::int64_t>(i)) - center + 0.5) * inverse);
        sum += weights[i];
    }
    if (sum == 0.0) return;
    for (double& weight : weights) weight /= sum;
}

const std::uint8_t* row_of(const RgbView& image, std::int64_t y) { return image.pixels + y * image.stride; }

Axis across_axis(const RgbView& image, const Scaling& scaling) {
    return {image.width, scaling.box.left, scaling.box.right, scaling.width};
}

Axis down_axis(const RgbView& image, const Scaling& scaling) {
    return {image.height, scaling.box.top, scaling.box.bottom, scaling.height};
}

// `in` begins with the first pixel that a tap reads.
void resize_across(const RgbView& in, const Taps& taps, std::uint8_t* out, std::int64_t stride) {
    for (std::int64_t y = 0; y < in.height; y += kRowsAtOnce) {
        RowGroup group;
        for (std::int64_t i = 0; i < kRowsAtOnce; ++i) {
            const std::int64_t row = std::min(y + i, in.height - 1);  // the last group may hold a row several times
            group.in[i] = row_of(in, row);
            group.out[i] = out + row * stride;
        }
        best_kernels().across(group, taps);
    }
}

// `in` begins with the first row that a tap reads.
void resize_down(const RgbView& in, const Taps& taps, std::uint8_t* out, std::int64_t stride) {
    for (std::int64_t y = 0; y < taps.pixels(); ++y) {
        const RowStack stack{row_of(in, taps.first[y] - taps.begin), in.stride, taps.weights_of(y), taps.count[y]};
        best_kernels().down(stack, 3 * in.width, out + y * stride);
    }
}

// Pillow 13 resizes the height first where it shrinks by more than twice as many pixels as the width. The order shows
// in the result, because pixels are rounded to 8 bits in between.
bool is_height_first(const Scaling& scaling) {
    const Box& box = scaling.box;
    const float across = (box.right - box.left) - static_cast<float>(scaling.width);
    const float down = (box.bottom - box.top) - static_cast<float>(scaling.height);
    return down > 0 && down > 2 * across;
}

void resample(const RgbView& image, const Scaling& scaling, std::uint8_t* out, std::int64_t stride) {
    const Window& window = scaling.window;
    const Taps columns = make_taps(across_axis(image, scaling), scaling.filter, window.left, window.width);
    const Taps rows = make_taps(down_axis(image, scaling), scaling.filter, window.top, window.height);
    // Only what the window needs is read, and only that is computed in between.
    const RgbView used{row_of(image, rows.begin) + 3 * columns.begin, columns.end - columns.begin, rows.end - rows.begin,
                       image.stride};
    const bool height_first = is_height_first(scaling);
    const std::int64_t width = height_first ? used.width : window.width;
    const std::int64_t height = height_first ? window.height : used.height;
    std::vector<std::uint8_t> between(static_cast<std::size_t>(3 * width * height));
    const RgbView half_way{between.data(), width, height, 3 * width};
    if (height_first) {
        resize_down(used, rows, between.data(), half_way.stride);
        resize_across(half_way, columns, out, stride);
    } else {
        resize_across(used, columns, between.data(), half_way.stride);
        resize_down(half_way, rows, out, stride);
    }
}

// The source pixel under the middle of each target pixel. PIL adds step to step, which gives other last bits than a
// product would.
std::vector<std::int64_t> nearest(const Axis& axis, std::int64_t first, std::int64_t count) {
    const double step = static_cast<double>(axis.end - axis.begin) / static_cast<double>(axis.target);
    double middle = axis.begin + step * 0.5;
    std::vector<std::int64_t> found;
    for (std::int64_t i = 0; i < first + count; ++i, middle += step) {
        if (i >= first) found.push_back(std::min(static_cast<std::int64_t>(middle), axis.source - 1));
    }
    return found;
}

void pick_nearest(const RgbView& image, const Scaling& scaling, std::uint8_t* out, std::int64_t stride) {
    const Window& window = scaling.window;
    const std::vector<std::int64_t> columns = nearest(across_axis(image, scaling), window.left, window.width);
    const std::vector<std::int64_t> rows = nearest(down_axis(image, scaling), window.top, window.height);
    for (const std::int64_t row : rows) {
        std::uint8_t* to = out;
        for (const std::int64_t column : columns) {
            std::memcpy(to, row_of(image, row) + 3 * column, 3);
            to += 3;
        }
        out += stride;
    }
}

}  // namespace

Taps make_taps(const Axis& axis, Interpolation filter, std::int64_t first, std::int64_t count) {
    const Reach reach(axis, filter);
    // PIL's own limit, which also bounds what an image of one row and millions of columns takes here.
    const std::int64_t most_bytes = reach.most_taps() * static_cast<std::int64_t>(sizeof(double));
    if (axis.target > INT_MAX / most_bytes) throw std::bad_alloc();
    Taps taps;
    taps.stride = (reach.most_taps() + 3) / 4 * 4;
    taps.weights.resize(static_cast<std::size_t>(count * taps.stride));
    std::vector<double> exact;
    for (std::int64_t i = 0; i < count; ++i) {
        const double center = axis.begin + (static_cast<double>(first + i) + 0.5) * reach.scale;
        const auto low = static_cast<std::int64_t>(center - reach.support + 0.5);
        const auto high = static_cast<std::int64_t>(center + reach.support + 0.5);
        const std::int64_t begin = std::clamp<std::int64_t>(low, 0, axis.source);
        const std::int64_t end = std::clamp<std::int64_t>(high, begin, axis.source);
        exact.resize(static_cast<std::size_t>(end - begin));
        weigh(center, begin, reach, filter, exact);
        std::transform(exact.begin(), exact.end(), taps.weights.begin() + i * taps.stride, fixed_point);
        taps.first.push_back(static_cast<std::int32_t>(begin));
        taps.count.push_back(static_cast<std::int32_t>(end - begin));
        taps.begin = i == 0 ? begin : std::min(taps.begin, begin);
        taps.end = std::max(taps.end, end);
    }
    return taps;
}

void resize(const RgbView& image, const Scaling& scaling, std::uint8_t* out, std::int64_t stride) {
    if (scaling.filter == Interpolation::nearest) {
        pick_nearest(image, scaling, out, stride);
    } else {
        resample(image, scaling, out, stride);
    }
}

}  // namespace prtool
