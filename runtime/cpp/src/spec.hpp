// The plain facts of a bundle that preprocessing and selection need, as typed values.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace prtool {

enum class Interpolation { bicubic, bilinear, nearest };
enum class ResizeMode { shortest, longest, squash };
enum class CropRounding { nearest, floor };

// How an image becomes pixels: resize, centre crop (or pad), RGB in [0, 1], normalise.
struct Preprocess {
    int height = 0;  // after the crop, in pixels
    int width = 0;
    std::array<double, 3> mean{};  // in RGB order, for values in [0, 1]
    std::array<double, 3> std{};
    Interpolation interpolation = Interpolation::bicubic;  // PIL's filter, antialiased
    ResizeMode resize_mode = ResizeMode::shortest;
    int fill = 0;  // padding value 0 to 255, for ResizeMode::longest
    CropRounding crop_rounding = CropRounding::nearest;  // of the crop's left and top edge; nearest takes the even one of two
    double resize_ratio = 1.0;  // what ResizeMode::shortest resizes to before the crop, relative to height and width; 1 to 8
};

// What shortens the sequence: patches are dropped by rank or merged in pairs, or nothing but a smaller image does.
enum class Method { rank, merge, none };

const char* method_name(Method method);

// What a bundle of a method can run: "fused" and "full", and "split" where patches are ranked.
std::vector<std::string> modes_of(Method method);

// Where the sequence becomes shorter, and which tokens always stay. It is always [prefix | patches | appended].
struct PruneSpec {
    Method method = Method::rank;
    std::int64_t rows = 0;
    std::int64_t columns = 0;
    std::int64_t depth = 0;
    std::vector<std::int64_t> locations;  // 1-based, rising; none for Method::none
    std::int64_t prefix_tokens = 1;
    std::int64_t learnable_tokens = 0;
    std::int64_t learnable_from_block = 1;
    std::vector<std::int64_t> drop_ratios;  // empty for equal numbers

    std::int64_t patches() const { return rows * columns; }

    // The fewest patches that can stay: merging halves them at most in each block, and with no location all of them stay.
    std::int64_t least_keep() const;

    // Patches that stay at each location: they go in proportion to `drop_ratios`, and the last location leaves k.
    // Throws Error(Status::keep): merging cannot leave so few.
    std::vector<std::int64_t> counts(std::int64_t k) const;

    // Throws Error(Status::keep): too many or too few counts, or they rise, leave none, or are out of reach of merging.
    void check_counts(const std::vector<std::int64_t>& counts) const;
};

}  // namespace prtool
