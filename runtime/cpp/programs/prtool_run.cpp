// prtool-run: embeds or classifies image files and folders with a bundle.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <future>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "arguments.hpp"
#include "image_files.hpp"
#include "new_files.hpp"
#include "output.hpp"
#include "prtool.hpp"

namespace {

prtool_options options_of(const Arguments& arguments) {
    prtool_options options = prtool_options_default();
    options.engine = arguments.engine.c_str();
    options.mode = arguments.mode.c_str();
    options.precision = arguments.precision.c_str();
    options.threads = static_cast<int>(arguments.threads);
    options.device = static_cast<int>(arguments.device);
    options.cuda_graphs = arguments.cuda_graphs ? 1 : 0;
    options.jpeg_scaling = arguments.jpeg_scaling ? 1 : 0;
    if (!arguments.cache.empty()) options.cache = arguments.cache.c_str();
    return options;
}

// A descriptor that is closed would be given to the next file that is opened, and text for it written there.
void hold_standard_streams() {
    for (const int number : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (fcntl(number, F_GETFD) >= 0) continue;
        const int opened = open("/dev/null", number == STDOUT_FILENO ? O_RDONLY : O_RDWR);
        if (opened >= 0 && opened != number) close(opened);
    }
}

// The pixels of one file, or the reason why it has none.
struct Prepared {
    std::vector<float> pixels;
    std::string failure;
};

// Prepares files [begin, end) on all CPUs.
std::vector<Prepared> prepare(const prtool::Encoder& encoder, const std::vector<std::string>& files, std::size_t begin, std::size_t end) {
    const std::size_t each = std::size_t{3} * static_cast<std::size_t>(encoder.info().image_height) * static_cast<std::size_t>(encoder.info().image_width);
    std::vector<Prepared> prepared(end - begin);
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        for (std::size_t place = next++; place < prepared.size(); place = next++) {
            std::vector<float> pixels(each);
            const bool read = prtool_prepare_file(encoder.handle(), files[begin + place].c_str(), pixels.data()) == PRTOOL_OK;
            prepared[place] = read ? Prepared{std::move(pixels), ""} : Prepared{{}, prtool_last_error()};
        }
    };
    std::vector<std::future<void>> workers;
    for (unsigned worker = 0; worker < std::max(1U, std::thread::hardware_concurrency()); ++worker) workers.push_back(std::async(std::launch::async, work));
    for (std::future<void>& worker : workers) worker.get();
    return prepared;
}

// Encodes every file, batch after batch, while the next files are prepared; what cannot be read is named on stderr and left out.
Embedded embed(const prtool::Encoder& encoder, const std::vector<std::string>& files, const Arguments& arguments) {
    const auto batch = static_cast<std::size_t>(arguments.batch);
    const std::size_t ahead = 2 * batch + std::thread::hardware_concurrency();
    const auto start = [&](std::size_t begin) {
        return std::async(std::launch::async, [&, begin] { return prepare(encoder, files, begin, std::min(begin + ahead, files.size())); });
    };
    Embedded result;
    result.width = static_cast<std::size_t>(encoder.info().embed_dim);
    std::vector<float> pixels;
    std::size_t waiting = 0;
    std::future<std::vector<Prepared>> coming = start(0);
    for (std::size_t number = 0; number < files.size();) {
        const std::vector<Prepared> group = coming.get();
        if (number + group.size() < files.size()) coming = start(number + group.size());
        for (const Prepared& item : group) {
            const std::string& path = files[number++];
            if (item.failure.empty()) {
                pixels.insert(pixels.end(), item.pixels.begin(), item.pixels.end());
                result.paths.push_back(path);
                ++waiting;
            } else {
                std::fprintf(stderr, "skipped: %s\n", item.failure.c_str());
            }
            if (waiting < batch && (waiting == 0 || number < files.size())) continue;
            const std::vector<float> found = encoder.encode_pixels(pixels, arguments.keep);
            result.embeddings.insert(result.embeddings.end(), found.begin(), found.end());
            pixels.clear();
            waiting = 0;
        }
    }
    if (result.paths.empty()) throw std::runtime_error("none of " + std::to_string(files.size()) + " images can be read");
    return result;
}

void run(const Arguments& arguments) {
    const Results what = arguments.command == "embed" ? Results::embeddings : Results::classes;
    check_output(arguments.output, what, arguments.paths, arguments.bundle);
    const ImageFiles found = expand_images(arguments.paths);
    const std::vector<std::string>& files = found.paths;
    if (!found.left_out.empty()) std::fprintf(stderr, "%s\n", found.left_out.c_str());
    const prtool::Encoder encoder(arguments.bundle, options_of(arguments));
    const auto started = std::chrono::steady_clock::now();
    const Embedded result = embed(encoder, files, arguments);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    if (what == Results::embeddings) {
        write_embeddings(result, arguments.output);
    } else {
        write_classes(result.paths, encoder.classify(result.embeddings, arguments.top), arguments.output);
    }
    finish_stdout();
    std::fprintf(stderr, "%zu of %zu images in %.2f s: %.1f images/s (%s %s, %s, %s)\n", result.paths.size(), files.size(), seconds,
                 static_cast<double>(result.paths.size()) / seconds, encoder.info().engine, encoder.info().engine_version, encoder.info().device,
                 arguments.mode.c_str());
}

}  // namespace

int main(int count, char** words) {
    hold_standard_streams();
    end_cleanly_on_signals();
    try {
        const Arguments arguments = parse_arguments(count, words);
        if (arguments.help) {
            std::cout << kUsage;
        } else if (arguments.version) {
            std::cout << "prtool-run " << prtool_version() << ", engines: " << prtool_engines() << '\n';
        } else {
            run(arguments);
        }
        finish_stdout();
        return 0;
    } catch (const UsageError& error) {
        std::fprintf(stderr, "%s\n\n%s", error.what(), kUsage);
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
