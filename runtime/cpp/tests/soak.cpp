// Hours of calls from several threads: every result equals that of one thread, and the memory stays flat.
// usage: prtool-soak BUNDLE THREADS SECONDS
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

#include "sample.hpp"

namespace {

using Clock = std::chrono::steady_clock;

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

std::vector<Case> cases_of(const prtool::Encoder& encoder) {
    std::vector<Case> cases;
    for (std::int64_t batch = 1; batch <= 8; ++batch) {
        for (const double ratio : {1.0, 0.7, 0.6, 0.4}) {
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
    prtool_options options{};
    options.threads = 1;
    options.no_spinning = 1;
    const prtool::Encoder encoder(words[1], options);
    const std::vector<Case> cases = cases_of(encoder);
    const auto workers = static_cast<unsigned>(std::atoi(words[2]));
    const auto end = Clock::now() + std::chrono::seconds(std::atoi(words[3]));
    std::atomic<long> calls{0};
    std::atomic<long> wrong{0};
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < workers; ++thread) {
        threads.emplace_back([&, thread] {
            std::mt19937 random(thread);
            while (Clock::now() < end) {
                const Case& chosen = cases[random() % cases.size()];
                if (encoder.encode_pixels(chosen.pixels, chosen.keep) != chosen.expected) ++wrong;
                ++calls;
            }
        });
    }
    // Arenas fill within the first calls; from then on nothing may grow.
    std::this_thread::sleep_for(std::chrono::seconds(std::min(30, std::atoi(words[3]) / 4 + 1)));
    const double first = resident_mib();
    for (std::thread& thread : threads) thread.join();
    std::printf("%ld calls from %u threads, %ld wrong; resident memory %.1f MiB after the first calls, %.1f MiB at the end\n", calls.load(), workers,
                wrong.load(), first, resident_mib());
    return wrong == 0 ? 0 : 1;
}
