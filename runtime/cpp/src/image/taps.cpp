#include "image/taps.hpp"

#include <algorithm>
#include <climits>
#include <cmath>
#include <new>

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

}  // namespace prtool
