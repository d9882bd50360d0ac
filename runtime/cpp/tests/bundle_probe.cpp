// Opens bundles and encodes a batch with each, for tests that make many of them (tests/runtime/test_cpp_hostile.py).
//
// usage: prtool-bundle-probe [ENGINE] < FOLDERS     a line of JSON for each line of folders:
//        {"status": 0, "message": "", "fused": [...], "split": [...], "memory_kb": 90000}     "full" where there is no "split"
//        prtool-bundle-probe --operators            the operators that graphs may have, one a line
#include <fstream>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "encoder.hpp"
#include "errors.hpp"
#include "graph_file.hpp"

namespace {

using nlohmann::json;

constexpr std::int64_t kBatch = 2;
// Pixels beyond this are what the bundle says, and take what they take.
constexpr std::size_t kMostPixels = std::size_t{3} << 20;

void reset_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }

// Most resident memory since the last reset.
long peak_kb() {
    std::ifstream file("/proc/self/status");
    for (std::string word; file >> word;) {
        long value = 0;
        if (word == "VmHWM:" && file >> value) return value;
    }
    return -1;
}

// Reproducible in any language: value i is (i * 37 % 101 - 50) / 50.
std::vector<float> pixels_of(const prtool::Encoder& encoder) {
    std::vector<float> pixels(static_cast<std::size_t>(kBatch) * encoder.pixels_per_image());
    for (std::size_t place = 0; place < pixels.size(); ++place) pixels[place] = (static_cast<float>(place * 37 % 101) - 50.0F) / 50.0F;
    return pixels;
}

// Returns the modes that the bundle has.
std::vector<std::string> encode(const std::string& folder, const char* engine, const std::string& mode, json& found) {
    prtool::EncoderOptions options;
    options.engine = engine;
    options.mode = mode;
    options.settings.threads = 1;
    options.settings.spinning = false;
    const prtool::Encoder encoder(folder, options);
    const prtool::Manifest& manifest = encoder.bundle().manifest();
    std::vector<std::string> modes = prtool::modes_of(manifest.prune.method);
    if (encoder.pixels_per_image() > kMostPixels) return modes;
    std::vector<float> embeddings(static_cast<std::size_t>(kBatch * manifest.model.embed_dim));
    encoder.encode_pixels(pixels_of(encoder).data(), kBatch, {prtool::Keep::Default{}}, embeddings.data());
    found[mode] = embeddings;
    std::int64_t labels[kBatch];
    float shares[kBatch];
    if (manifest.classes) encoder.classes().classify(embeddings.data(), kBatch, 1, labels, shares);
    return modes;
}

json probed(const std::string& folder, const char* engine) {
    json found = {{"status", 0}, {"message", ""}};
    const auto failed = [&found](prtool::Status status, const char* message) {
        found["status"] = static_cast<int>(status);
        found["message"] = message;
    };
    try {
        encode(folder, engine, encode(folder, engine, "fused", found)[1], found);
    } catch (const prtool::Error& error) {
        failed(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        failed(prtool::Status::memory, "out of memory");
    }
    return found;
}

}  // namespace

int main(int count, char** words) {
    const std::string engine = count > 1 ? words[1] : "ort";
    if (engine == "--operators") {
        for (const std::string& name : prtool::graph_operators()) std::cout << name << '\n';
        return 0;
    }
    for (std::string folder; std::getline(std::cin, folder);) {
        reset_peak();
        json found = probed(folder, engine.c_str());
        found["memory_kb"] = peak_kb();
        std::cout << found.dump(-1, ' ', true, json::error_handler_t::replace) << std::endl;
    }
    return 0;
}
