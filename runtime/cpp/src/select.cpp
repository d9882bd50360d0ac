#include "select.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "errors.hpp"

namespace prtool {

std::vector<std::int64_t> select(const float* scores, std::int64_t batch, std::int64_t patches, std::int64_t k) {
    if (k < 1 || k > patches) {
        throw Error(Status::keep, "k = " + std::to_string(k) + ", but there are " + std::to_string(patches) + " patches to choose from; give 1 to " + std::to_string(patches));
    }
    const auto count = static_cast<std::size_t>(patches);
    std::vector<std::int64_t> chosen(static_cast<std::size_t>(batch * k));
    std::vector<std::int64_t> order(count);
    for (std::int64_t image = 0; image < batch; ++image) {
        const float* row = scores + image * patches;
        const float* invalid = std::find_if(row, row + patches, [](float score) { return std::isnan(score); });
        if (invalid != row + patches) {
            throw Error(Status::shape, "the score of image " + std::to_string(image) + ", patch " + std::to_string(invalid - row) +
                                           " is NaN, and NaN has no rank; look for NaN or infinity in the pixels, or for overflow in a graph of reduced precision");
        }
        std::iota(order.begin(), order.end(), 0);
        // Index breaks ties, so the order is total and need not be stable.
        std::partial_sort(order.begin(), order.begin() + k, order.end(), [row](std::int64_t first, std::int64_t second) {
            return precedes(row[first], first, row[second], second);
        });
        std::copy_n(order.begin(), k, chosen.begin() + image * k);
    }
    return chosen;
}

void gather(const float* tokens, const Sequence& sequence, const std::vector<std::int64_t>& indices, std::int64_t k, float* out) {
    const std::int64_t width = sequence.width;
    const std::int64_t length = sequence.prefix + sequence.patches + sequence.appended;
    for (std::int64_t image = 0; image < sequence.batch; ++image) {
        const float* from = tokens + image * length * width;
        out = std::copy_n(from, sequence.prefix * width, out);
        for (std::int64_t place = 0; place < k; ++place) {
            const std::int64_t patch = indices[static_cast<std::size_t>(image * k + place)];
            out = std::copy_n(from + (sequence.prefix + patch) * width, width, out);
        }
        out = std::copy_n(from + (length - sequence.appended) * width, sequence.appended * width, out);
    }
}

}  // namespace prtool
