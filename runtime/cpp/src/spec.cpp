#include "spec.hpp"

#include <algorithm>
#include <utility>

#include "errors.hpp"

namespace prtool {

namespace {

std::vector<std::int64_t> distributed(const PruneSpec& prune, std::int64_t k) {
    const std::vector<std::int64_t> drops = prune.drop_ratios.empty() ? std::vector<std::int64_t>(prune.locations.size(), 1) : prune.drop_ratios;
    std::int64_t all = 0, until = 0;
    for (const std::int64_t drop : drops) all += drop;
    std::vector<std::int64_t> counts;
    for (const std::int64_t drop : drops) {
        until += drop;
        counts.push_back(prune.patches() - (prune.patches() - k) * until / all);
    }
    return counts;
}

// Whether each block has the pairs for its merges: every second token joins another at most.
bool merges_reach(const PruneSpec& prune, const std::vector<std::int64_t>& counts) {
    if (prune.method != Method::merge) return true;
    std::int64_t before = prune.patches();
    return std::all_of(counts.begin(), counts.end(), [&before](std::int64_t k) { return before - k <= std::exchange(before, k) / 2; });
}

}  // namespace

const char* method_name(Method method) {
    return method == Method::rank ? "rank" : method == Method::merge ? "merge" : "none";
}

std::vector<std::string> modes_of(Method method) {
    return method == Method::rank ? std::vector<std::string>{"fused", "split", "full"} : std::vector<std::string>{"fused", "full"};
}

std::int64_t PruneSpec::least_keep() const {
    if (locations.empty()) return patches();
    if (method == Method::rank) return 1;
    std::int64_t low = 1, high = patches();
    while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (merges_reach(*this, distributed(*this, middle))) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

std::vector<std::int64_t> PruneSpec::counts(std::int64_t k) const {
    std::vector<std::int64_t> found = distributed(*this, k);
    const std::int64_t least = least_keep();
    if (k < least || !merges_reach(*this, found)) {
        const std::string how = locations.empty() ? "nothing is dropped" : "merging in " + std::to_string(locations.size()) + " blocks leaves at least " + std::to_string(least);
        throw Error(Status::keep, "keep = " + std::to_string(k) + " of " + std::to_string(patches()) + " patches, but " + how + " with method '" +
                                      method_name(method) + "'; give " + std::to_string(least) + " to " + std::to_string(patches()));
    }
    return found;
}

void PruneSpec::check_counts(const std::vector<std::int64_t>& counts) const {
    bool falling = counts.size() == locations.size();
    std::int64_t before = patches();
    for (const std::int64_t k : counts) {
        falling = falling && k > 0 && k <= before;
        before = k;
    }
    if (falling && merges_reach(*this, counts)) return;
    throw Error(Status::keep, "keep counts " + listed(counts) + ", but the locations " + listed(locations) + " take " + std::to_string(locations.size()) +
                                  " whole numbers that do not rise, from at most " + std::to_string(patches()) + " patches on" +
                                  (method == Method::merge ? ", each at least half of the one before" : "") + ", such as " +
                                  listed(distributed(*this, std::max(least_keep(), patches() / 2))));
}

}  // namespace prtool
