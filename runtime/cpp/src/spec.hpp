// The plain facts of a bundle that preprocessing and selection need, as typed values.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace prtool {

enum class Interpolation { bicubic, bilinear, nearest };
enum class ResizeMode { shortest, longest, squash };

// How an image becomes pixels: resize, centre crop (or pad), RGB in [0, 1], normalise.
struct Preprocess {
    int height = 0;  // after the crop, in pixels
    int width = 0;
    std::array<double, 3> mean{};  // in RGB order, for values in [0, 1]
    std::array<double, 3> std{};
    Interpolation interpolation = Interpolation::bicubic;  // PIL's filter, antialiased
    ResizeMode resize_mode = ResizeMode::shortest;
    int fill = 0;  // padding value 0 to 255, for ResizeMode::longest
};

// Where tokens are dropped, and which never are. A sequence is always [prefix | patches | appended].
struct PruneSpec {
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    std::int64_t depth = 0;
    std::vector<std::int64_t> locations;  // 1-based, rising
    std::int64_t prefix_tokens = 1;
    std::int64_t learnable_tokens = 0;
    std::int64_t learnable_from_block = 1;
    std::vector<std::int64_t> drop_ratios;  // empty for equal numbers

    std::int64_t patches() const { return rows * columns; }
};

}  // namespace prtool
