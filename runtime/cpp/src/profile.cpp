#include "profile.hpp"

#include <algorithm>

namespace prtool {

namespace {

constexpr ShapeRange kBatch{1, 8, 32};

}  // namespace

Profile profile_of(const Manifest& manifest) {
    const std::int64_t usual = std::clamp(manifest.default_keep, manifest.min_keep, manifest.max_keep);
    // With several locations a graph sees the counts of each, which fall towards the last.
    const std::vector<std::int64_t> widest = manifest.counts({manifest.max_keep});
    const ShapeRange counts{manifest.min_keep, usual, *std::max_element(widest.begin(), widest.end())};
    const std::int64_t always = manifest.prune.prefix_tokens + manifest.prune.learnable_tokens;
    return {{"batch", kBatch}, {"tokens", {always + counts.least, always + counts.usual, always + counts.most}}, {"k", counts}};
}

}  // namespace prtool
