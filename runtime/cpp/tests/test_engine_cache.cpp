// The cache of built engines: what makes one stale, what is refused, and many builders at once.
#include <doctest/doctest.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "engines/trt/cache.hpp"
#include "engines/trt/files.hpp"
#include "errors.hpp"
#include "sha256.hpp"

namespace {

using prtool::Error;
using prtool::Status;
namespace fs = std::filesystem;
namespace trt = prtool::trt;
using trt::EngineKey;

// A cache in a folder of its own, which is removed at the end.
struct Place {
    char pattern[32] = "/tmp/prtool-cache-XXXXXX";
    fs::path root = fs::path(mkdtemp(pattern)) / "engines";
    trt::EngineCache cache{root.string()};
    ~Place() { fs::remove_all(root.parent_path()); }
};

EngineKey sample() {
    EngineKey key;
    key.onnx_sha256 = std::string(64, '1');
    key.precision = "fp32";
    key.profiles = "batch 1:8:32";
    key.builder = "level=3";
    key.library = "tensorrt";
    key.library_version = "11.4";
    key.device = "NVIDIA H200";
    key.compute_capability = "9.0";
    key.driver = "580.65";
    return key;
}

std::string plan() {
    return "plan of an engine";
}

std::string refuse() {
    FAIL("it should have been taken from the cache");
    return "";
}

void write(const fs::path& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
}

std::string refusal(const trt::EngineCache& cache, const EngineKey& key, Status status = Status::engine) {
    try {
        cache.obtain(key, refuse, "");
    } catch (const Error& error) {
        CHECK(error.status() == status);
        return error.what();
    }
    return "";
}

std::vector<std::string> visible(const fs::path& root) {
    std::vector<std::string> names;
    for (const auto& child : fs::directory_iterator(root)) names.push_back(child.path().filename().string());
    return names;
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("what was built is taken next time") {
    const Place place;
    const auto first = place.cache.obtain(sample(), plan, "pre.onnx");
    const auto again = place.cache.obtain(sample(), refuse, "pre.onnx");
    CHECK(first.built);
    CHECK_FALSE(again.built);
    CHECK(first.reason == "not in the cache");
    CHECK(again.reason == "in the cache");
    CHECK(again.content == plan());
    CHECK(again.record.sha256 == prtool::sha256_text(plan()));
    CHECK(first.path == place.root / sample().digest() / "engine.plan");
    const auto record = nlohmann::json::parse(trt::read_file(first.path.parent_path() / "build.json"));
    CHECK(record["schema"] == 1);
    CHECK(record["key"]["device"] == "NVIDIA H200");
    CHECK(record["source"] == (fs::current_path() / "pre.onnx").string());
    CHECK(record["seconds"].is_number_float());
}

TEST_CASE("every field of the key makes a new engine and says so") {
    const Place place;
    place.cache.obtain(sample(), plan, "/a/pre.onnx");
    for (const auto& [name, field] : trt::kKeyFields) {
        EngineKey changed = sample();
        changed.*field = std::string("another ") + name;
        CHECK(changed.digest() != sample().digest());
        const auto built = place.cache.obtain(changed, plan, "/a/./pre.onnx");
        const std::string old = (sample().*field).substr(0, 12);
        const std::string fresh = std::string(name) == "onnx_sha256" ? "another onnx" : changed.*field;
        CHECK(built.reason == "stale: " + std::string(name) + " changed from '" + old + "' to '" + fresh + "'");
    }
}

TEST_CASE("damage is refused before anything is loaded") {
    const std::vector<std::pair<std::function<void(const fs::path&)>, std::string>> damages = {
        {[](const fs::path& folder) { write(folder / "engine.plan", "plan"); }, "it has 4 bytes, but 17 were built"},
        {[](const fs::path& folder) { write(folder / "engine.plan", "plan of an enginE"); }, "its SHA-256 is not the one recorded"},
        {[](const fs::path& folder) { fs::remove(folder / "engine.plan"); }, "engine.plan is not loaded: it is missing"},
        {[](const fs::path& folder) { fs::remove(folder / "build.json"); }, "build.json is not loaded: it is missing"},
        {[](const fs::path& folder) { write(folder / "build.json", "{"); }, "it cannot be read"},
        {[](const fs::path& folder) { write(folder / "build.json", "[1]"); }, "it is not a JSON object"},
        {[](const fs::path& folder) { write(folder / "build.json", "{\"schema\": 1}"); }, "its fields are not those of a record"},
        {[](const fs::path& folder) {
             auto value = nlohmann::json::parse(trt::read_file(folder / "build.json"));
             value["size"] = "17";
             write(folder / "build.json", value.dump());
         },
         "its values are not of the right kinds"},
        {[](const fs::path& folder) {
             auto value = nlohmann::json::parse(trt::read_file(folder / "build.json"));
             value["key"]["device"] = "another";
             write(folder / "build.json", value.dump());
         },
         "its key is not the one that its folder is named by"},
    };
    for (const auto& [damage, message] : damages) {
        const Place place;
        place.cache.obtain(sample(), plan, "");
        damage(place.root / sample().digest());
        const std::string said = refusal(place.cache, sample());
        CHECK(has(said, message));
        CHECK(has(said, "'prtool engine-cache clear " + sample().digest() + " --engine-cache " + place.root.string() + "'"));
    }
}

TEST_CASE("another schema is built again") {
    const Place place;
    place.cache.obtain(sample(), plan, "");
    write(place.root / sample().digest() / "build.json", "{\"schema\": 0}");
    const auto built = place.cache.obtain(sample(), plan, "");
    CHECK(built.built);
    CHECK(built.reason == "stale: its record is not of schema 1");
    CHECK_FALSE(place.cache.obtain(sample(), refuse, "").built);
}

TEST_CASE("a build that fails leaves nothing behind, and the next one sweeps what a killed one left") {
    const Place place;
    CHECK_THROWS_AS(place.cache.obtain(sample(), []() -> std::string { throw Error(Status::engine, "no"); }, ""), Error);
    CHECK_THROWS_AS(place.cache.obtain(sample(), [] { return std::string(); }, ""), Error);
    CHECK(visible(place.root) == std::vector<std::string>{".locks"});
    fs::create_directory(place.root / ("." + sample().digest() + ".1.part"));
    CHECK(place.cache.obtain(sample(), plan, "").built);
    CHECK(visible(place.root).size() == 2);
}

TEST_CASE("a folder that cannot be written is named") {
    const Place place;
    fs::create_directories(place.root.parent_path());
    write(place.root, "a file");
    CHECK(has(refusal(place.cache, sample(), Status::storage), "cannot write " + place.root.string()));
}

TEST_CASE("one thread builds, the others take its result") {
    const Place place;
    std::atomic<int> builds{0};
    std::vector<std::thread> threads;
    for (int number = 0; number < 6; ++number) {
        threads.emplace_back([&] {
            const auto slow = [&builds] {
                ++builds;
                std::this_thread::sleep_for(std::chrono::milliseconds(50));
                return plan();
            };
            CHECK(place.cache.obtain(sample(), slow, "").content == plan());
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(builds == 1);
}

TEST_CASE("the engine used last is found, whatever the ignored fields are") {
    const Place place;
    CHECK_FALSE(place.cache.latest(sample(), {&EngineKey::profiles}).has_value());
    for (const char* profiles : {"batch 1:1:1", "batch 2:2:2"}) {
        EngineKey key = sample();
        key.profiles = profiles;
        place.cache.obtain(key, plan, "");
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    CHECK(place.cache.latest(sample(), {&EngineKey::profiles})->key.profiles == "batch 2:2:2");
    CHECK_FALSE(place.cache.latest(sample(), {&EngineKey::builder}).has_value());
    EngineKey first = sample();
    first.profiles = "batch 1:1:1";
    place.cache.obtain(first, refuse, "");
    CHECK(place.cache.latest(sample(), {&EngineKey::profiles})->key.profiles == "batch 1:1:1");
    // A damaged entry is passed over.
    write(place.root / first.digest() / "build.json", "{");
    CHECK(place.cache.latest(sample(), {&EngineKey::profiles})->key.profiles == "batch 2:2:2");
}

TEST_CASE("weights beside the graph are part of its digest") {
    const Place place;
    fs::create_directories(place.root);
    const fs::path graph = place.root / "g.onnx";
    const std::string location("\x0a\x08location\x12\x06g.data..", 19);
    write(graph, location);
    const std::string alone = trt::onnx_digest(graph.string());
    CHECK(alone == prtool::sha256_text(prtool::sha256_text(location)));
    write(place.root / "g.data", "weights");
    CHECK(trt::onnx_digest(graph.string()) == prtool::sha256_text(prtool::sha256_text(location) + "g.data " + prtool::sha256_text("weights")));
    write(graph, "");
    CHECK(trt::onnx_digest(graph.string()) == prtool::sha256_text(prtool::sha256_text("")));
    CHECK_THROWS_AS(trt::onnx_digest((place.root / "none.onnx").string()), Error);
}
