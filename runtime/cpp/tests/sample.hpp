// The bundle that PRTOOL_TEST_BUNDLE names, and seeded pixels for it.
#pragma once

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "prtool.hpp"

inline std::string bundle_path() {
    const char* path = std::getenv("PRTOOL_TEST_BUNDLE");
    return path == nullptr ? "" : path;
}

// A count that every bundle can keep, between the least and the most.
inline std::int64_t middle_keep(const prtool_info& info) { return (info.min_keep + info.max_keep) / 2; }

inline bool ranks(const prtool_info& info) { return std::string(info.method) == "rank"; }

inline std::vector<float> noise(const prtool_info& info, std::int64_t batch, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<float> pixels(static_cast<std::size_t>(batch * 3 * info.image_height * info.image_width));
    for (float& value : pixels) value = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
    return pixels;
}
