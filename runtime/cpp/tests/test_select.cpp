// Selection against a plain loop.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "errors.hpp"
#include "select.hpp"

namespace {

// Takes the largest again and again; of equal ones the first that it meets.
std::vector<std::int64_t> by_loop(const std::vector<float>& scores, std::int64_t batch, std::int64_t patches, std::int64_t k) {
    std::vector<std::int64_t> found;
    for (std::int64_t image = 0; image < batch; ++image) {
        std::vector<bool> taken(static_cast<std::size_t>(patches));
        for (std::int64_t step = 0; step < k; ++step) {
            std::int64_t best = -1;
            for (std::int64_t patch = 0; patch < patches; ++patch) {
                const auto at = [&](std::int64_t place) { return scores[static_cast<std::size_t>(image * patches + place)]; };
                if (!taken[static_cast<std::size_t>(patch)] && (best < 0 || at(patch) > at(best))) best = patch;
            }
            taken[static_cast<std::size_t>(best)] = true;
            found.push_back(best);
        }
    }
    return found;
}

}  // namespace

TEST_CASE("the k best by falling score, ties to the lower index") {
    std::mt19937 random(3);
    for (const std::int64_t patches : {1, 2, 7, 196}) {
        std::vector<float> scores(static_cast<std::size_t>(3 * patches));
        // Few distinct values, so that ties are common; infinities are ordered too.
        for (float& score : scores) score = static_cast<float>(random() % 5);
        scores.front() = std::numeric_limits<float>::infinity();
        scores.back() = -std::numeric_limits<float>::infinity();
        for (std::int64_t k = 1; k <= patches; k += 1 + patches / 5) {
            CHECK(prtool::select(scores.data(), 3, patches, k) == by_loop(scores, 3, patches, k));
        }
    }
}

TEST_CASE("NaN and a count out of range are rejected") {
    std::vector<float> scores{1.0F, 2.0F, std::nanf("")};
    CHECK_THROWS_WITH_AS(prtool::select(scores.data(), 1, 3, 2), doctest::Contains("image 0, patch 2 is NaN"), prtool::Error);
    CHECK_THROWS_WITH_AS(prtool::select(scores.data(), 1, 2, 0), doctest::Contains("k = 0"), prtool::Error);
    CHECK_THROWS_WITH_AS(prtool::select(scores.data(), 1, 2, 3), doctest::Contains("give 1 to 2"), prtool::Error);
}

TEST_CASE("prefix and appended tokens stay around the kept patches") {
    // Two images of 1 prefix, 3 patches and 1 appended token of width 2; a token's values say which it is.
    std::vector<float> tokens(2 * 5 * 2);
    for (std::size_t place = 0; place < tokens.size(); ++place) tokens[place] = static_cast<float>(place / 2);
    std::vector<float> out(2 * 4 * 2);
    prtool::gather(tokens.data(), {2, 3, 2, 1, 1}, {2, 0, 1, 2}, 2, out.data());
    CHECK(out == std::vector<float>{0, 0, 3, 3, 1, 1, 4, 4, 5, 5, 7, 7, 8, 8, 9, 9});
}

TEST_CASE("ranks by counting are the order of select, with NaN last") {
    const float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> scores = {0.5F, -infinity, 2.0F, -0.0F, 0.0F, 2.0F, infinity, 0.5F};
    const auto patches = static_cast<std::int64_t>(scores.size());
    const std::vector<std::int64_t> order = prtool::select(scores.data(), 1, patches, patches);
    for (std::int64_t patch = 0; patch < patches; ++patch) {
        CHECK(order[static_cast<std::size_t>(prtool::rank_of(scores.data(), patches, patch))] == patch);
    }
    const float invalid = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> some = {invalid, -infinity, invalid, 1.0F};
    const std::vector<std::int64_t> ranks = {2, 1, 3, 0};
    for (std::int64_t patch = 0; patch < 4; ++patch) CHECK(prtool::rank_of(some.data(), 4, patch) == ranks[static_cast<std::size_t>(patch)]);
}

TEST_CASE("rows of a selection are those of gather") {
    const std::vector<std::int64_t> chosen = {3, 0};
    const prtool::Sequence sequence{1, 4, 1, 1, 2};
    const std::vector<float> tokens = {10, 20, 21, 22, 23, 30, 31};
    std::vector<float> out(5);
    prtool::gather(tokens.data(), sequence, chosen, 2, out.data());
    for (std::int64_t row = 0; row < 5; ++row) {
        CHECK(out[static_cast<std::size_t>(row)] == tokens[static_cast<std::size_t>(prtool::source_row(row, chosen.data(), 2, 4, 1))]);
    }
}
