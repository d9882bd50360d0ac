// Engine files of the cache that Python fills: which one is found, and what is rejected. Records are as engines/cache/record.py
// writes them; tests/runtime/test_cpp_cache.py has it write some.
#include <doctest/doctest.h>
#include <stdlib.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "engines/trt/plans.hpp"
#include "errors.hpp"
#include "sha256.hpp"

namespace {

using nlohmann::json;
using prtool::Error;
using prtool::Status;
namespace fs = std::filesystem;
namespace trt = prtool::trt;

constexpr const char* kCommand = "prtool build --engine trt";
const std::string kPlan = "plan of an engine";

trt::PlanKey sample() {
    return {{"graph_sha256", std::string(64, '1')}, {"weights_sha256", ""},   {"precision", "fp16"},   {"builder", "1"},
            {"library", "tensorrt"},                {"library_version", "11"}, {"device", "NVIDIA H200"}, {"compute_capability", "9.0"},
            {"driver", "580.65"},                   {"system", "Linux"},       {"architecture", "x86_64"}};
}

void write(const fs::path& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
}

// A folder of engines, which is removed at the end.
struct Place {
    char pattern[32] = "/tmp/prtool-plans-XXXXXX";
    fs::path root = mkdtemp(pattern);
    ~Place() { fs::remove_all(root); }

    // An engine of that id, used so many seconds ago.
    fs::path add(char id, const trt::PlanKey& key, std::int64_t max_batch = 32, int age_s = 0, const json& options = {{"strip_weights", false}, {"version_compatible", true}}) const {
        const fs::path folder = root / std::string(32, id);
        json fields = key;
        fields["profiles"] = {{{"batch", {{"min", 1}, {"opt", 8}, {"max", max_batch}}}}};
        fields["options"] = options;
        const json record = {{"schema", 1},      {"key", fields},   {"source", "/pre.onnx"}, {"size", kPlan.size()}, {"sha256", prtool::sha256_text(kPlan)},
                             {"seconds", 1.25}, {"built_at", "now"}};
        fs::create_directory(folder);
        write(folder / "engine.plan", kPlan);
        write(folder / "build.json", record.dump());
        for (const auto& file : fs::directory_iterator(folder)) fs::last_write_time(file.path(), fs::file_time_type::clock::now() - std::chrono::seconds(age_s));
        return folder;
    }

    trt::Plan find(const trt::PlanKey& key = sample()) const { return trt::find_plan(root.string(), key, kCommand); }

    std::string error(const trt::PlanKey& key = sample(), Status status = Status::engine) const {
        try {
            find(key);
        } catch (const Error& error) {
            CHECK(error.status() == status);
            return error.what();
        }
        return "";
    }
};

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("the plan of the same key is found, checked and read") {
    const Place place;
    trt::PlanKey other = sample();
    other["graph_sha256"] = std::string(64, '2');
    place.add('a', other);
    const fs::path folder = place.add('b', sample());
    const trt::Plan found = place.find();
    CHECK(found.path == (folder / "engine.plan").string());
    CHECK(found.content == kPlan);
    CHECK(trt::profiles_text(found.profiles) == "batch 1:8:32");
    CHECK(found.version_compatible);
    CHECK_FALSE(found.strip_weights);
}

TEST_CASE("of several plans the one that was built or used last is taken, whatever its shapes are") {
    const Place place;
    place.add('a', sample(), 64, 100);
    place.add('b', sample(), 16, 50);
    place.add('c', sample(), 8, 200);
    CHECK(trt::profiles_text(place.find().profiles) == "batch 1:8:16");
}

TEST_CASE("every field of the key counts, and an error names the one that differs and the command") {
    const Place place;
    CHECK(has(place.error(), "it holds none"));
    CHECK(has(place.error(), kCommand));
    place.add('a', sample());
    for (const auto& [name, value] : sample()) {
        trt::PlanKey wanted = sample();
        wanted[name] = "another";
        const std::string said = place.error(wanted);
        CHECK(has(said, name + " '" + value.substr(0, 32)));
        CHECK(has(said, "in place of 'another'"));
        CHECK(has(said, kCommand));
    }
}

TEST_CASE("a damaged plan is never loaded") {
    const std::vector<std::function<void(const fs::path&)>> damages = {
        [](const fs::path& folder) { write(folder / "engine.plan", "plan"); },
        [](const fs::path& folder) { write(folder / "engine.plan", "plan of an enginE"); },
        [](const fs::path& folder) { fs::remove(folder / "engine.plan"); },
        [](const fs::path& folder) {
            fs::rename(folder / "engine.plan", folder / "elsewhere");
            fs::create_symlink(folder / "elsewhere", folder / "engine.plan");
        },
    };
    for (const auto& damage : damages) {
        const Place place;
        const fs::path folder = place.add('a', sample());
        damage(folder);
        const std::string said = place.error();
        CHECK(has(said, (folder / "engine.plan").string()));
        CHECK(has(said, std::string(kCommand) + " --rebuild"));
    }
}

TEST_CASE("a damaged record is passed over, and named where no other fits") {
    const auto changed = [](const char* name, const json& value) {
        return [name, value](const fs::path& folder) {
            std::ifstream file(folder / "build.json");
            json record = json::parse(file);
            record[json::json_pointer(name)] = value;
            write(folder / "build.json", record.dump());
        };
    };
    const std::vector<std::function<void(const fs::path&)>> damages = {
        [](const fs::path& folder) { fs::remove(folder / "build.json"); },
        [](const fs::path& folder) { write(folder / "build.json", "{"); },
        [](const fs::path& folder) { write(folder / "build.json", "[1]"); },
        [](const fs::path& folder) { write(folder / "build.json", "{\"schema\": 1}"); },
        changed("/size", "17"),
        changed("/more", 1),
        changed("/key/device", 3),
        changed("/key/options", {{"strip_weights", false}}),
        changed("/key/profiles", {{{"batch", {{"min", 2}, {"opt", 1}, {"max", 3}}}}}),
        changed("/key/profiles", {{{"batch", 3}}}),
    };
    for (const auto& damage : damages) {
        const Place place;
        const fs::path folder = place.add('a', sample());
        damage(folder);
        CHECK(has(place.error(), (folder / "build.json").string()));
        place.add('b', sample(), 32, 10);
        CHECK(place.find().content == kPlan);
    }
}

TEST_CASE("another schema and other folders are not looked at") {
    const Place place;
    write(place.add('a', sample()) / "build.json", "{\"schema\": 2}");
    fs::create_directory(place.root / "timing");
    CHECK(has(place.error(), "it holds none"));
    const Place file;
    write(file.root / "engines", "a file");
    CHECK_THROWS_AS(trt::find_plan((file.root / "engines").string(), sample(), kCommand), Error);
}
