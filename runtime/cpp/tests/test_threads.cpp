// Many threads on one encoder, with other batches and keeps in every call.
#include <doctest/doctest.h>

#include <atomic>
#include <thread>

#include "sample.hpp"

namespace {

struct Case {
    std::vector<float> pixels;
    prtool::Keep keep;
    std::vector<float> expected;
};

std::vector<Case> cases_of(const prtool::Encoder& encoder) {
    std::vector<Case> cases;
    for (const std::int64_t batch : {1, 2, 5}) {
        for (const std::int64_t count : {encoder.info().max_keep, middle_keep(encoder.info()), encoder.info().min_keep}) {
            Case made{noise(encoder.info(), batch, static_cast<unsigned>(batch)), prtool::Keep::count(count), {}};
            made.expected = encoder.encode_pixels(made.pixels, made.keep);
            cases.push_back(std::move(made));
        }
    }
    return cases;
}

}  // namespace

TEST_CASE("results do not depend on other threads") {
    const bool split = ranks(prtool::Encoder(bundle_path()).info());
    for (const char* mode : {"fused", "split"}) {
        if (mode == std::string("split") && !split) continue;
        prtool_options options = prtool_options_default();
        options.mode = mode;
        options.threads = 1;
        const prtool::Encoder encoder(bundle_path(), options);
        const std::vector<Case> cases = cases_of(encoder);
        std::atomic<int> wrong{0};
        std::vector<std::thread> threads;
        for (unsigned thread = 0; thread < 4; ++thread) {
            threads.emplace_back([&, thread] {
                std::mt19937 random(thread);
                for (int call = 0; call < 40; ++call) {
                    const Case& chosen = cases[random() % cases.size()];
                    if (encoder.encode_pixels(chosen.pixels, chosen.keep) != chosen.expected) ++wrong;
                    // An error of this thread stays this thread's.
                    if (prtool_encode_pixels(encoder.handle(), chosen.pixels.data(), -static_cast<int>(thread) - 1, {}, nullptr) == PRTOOL_OK) ++wrong;
                }
            });
        }
        for (std::thread& thread : threads) thread.join();
        CHECK(wrong == 0);
    }
}
