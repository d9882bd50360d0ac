// Hours of calls from several threads: every result equals that of one thread, and the memory stays flat.
// usage: prtool-soak BUNDLE THREADS SECONDS
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "sample.hpp"

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::array<double, 4> kRatios = {1.0, 0.7, 0.6, 0.4};
constexpr int kWarmUps = 5;
constexpr int kParts = 10;

struct Case {
    std::vector<float> pixels;
    prtool::Keep keep;
    std::vector<float> expected;
};

double resident_mib() {
    long pages = 0;
    std::ifstream("/proc/self/statm") >> pages >> pages;
    return static_cast<double>(pages) * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

void in_threads(unsigned workers, const std::function<void(unsigned)>& work) {
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < workers; ++thread) threads.emplace_back(work, thread);
    for (std::thread& thread : threads) thread.join();
}

std::vector<Case> cases_of(const prtool::Encoder& encoder) {
    std::vector<Case> cases;
    for (std::int64_t batch = 1; batch <= 8; ++batch) {
        for (const double ratio : kRatios) {
            Case made{noise(encoder.info(), batch, static_cast<unsigned>(batch)), prtool::Keep::ratio(ratio), {}};
            made.expected = encoder.encode_pixels(made.pixels, made.keep);
            cases.push_back(std::move(made));
        }
    }
    return cases;
}

}  // namespace

int main(int count, char** words) {
    if (count != 4) {
        std::fputs("usage: prtool-soak BUNDLE THREADS SECONDS\n", stderr);
        return 2;
    }
    prtool_options options = prtool_options_default();
    options.threads = 1;
    options.spinning = 0;
    const prtool::Encoder encoder(words[1], options);
    const std::vector<Case> cases = cases_of(encoder);
    const auto workers = static_cast<unsigned>(std::atoi(words[2]));
    const std::size_t largest = cases.size() - kRatios.size();  // most images, every patch
    // Arenas grow with the largest calls that meet; from then on nothing may grow.
    in_threads(workers, [&](unsigned) {
        for (int turn = 0; turn < kWarmUps; ++turn) encoder.encode_pixels(cases[largest].pixels, cases[largest].keep);
    });
    std::atomic<long> calls{0};
    std::atomic<long> wrong{0};
    const auto begin = Clock::now();
    const auto seconds = std::chrono::seconds(std::atoi(words[3]));
    std::printf("resident memory in MiB at first, and after each tenth of the time: %.1f;", resident_mib());
    for (int part = 1; part <= kParts; ++part) {
        in_threads(workers, [&](unsigned thread) {
            std::mt19937 random(thread + static_cast<unsigned>(part) * workers);
            while (Clock::now() < begin + seconds * part / kParts) {
                const Case& chosen = cases[random() % cases.size()];
                if (encoder.encode_pixels(chosen.pixels, chosen.keep) != chosen.expected) ++wrong;
                ++calls;
            }
        });
        std::printf(" %.1f", resident_mib());
        std::fflush(stdout);
    }
    std::printf("\n%ld calls from %u threads, %ld wrong\n", calls.load(), workers, wrong.load());
    return wrong == 0 ? 0 : 1;
}
