#include "engines/ort_tensorrt_cache.hpp"

#include <onnxruntime_cxx_api.h>

#include <array>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "engines/trt/cache_key.hpp"
#include "engines/trt/cache_record.hpp"
#include "engines/trt/files.hpp"
#include "engines/trt/shapes.hpp"
#include "errors.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace prtool {

namespace {

namespace fs = std::filesystem;
using Digests = std::map<std::string, std::string>;

constexpr const char* kRecord = "files.json";
constexpr std::array<std::pair<const char*, std::int64_t ShapeRange::*>, 3> kBounds = {{
    {"trt_profile_min_shapes", &ShapeRange::least},
    {"trt_profile_opt_shapes", &ShapeRange::usual},
    {"trt_profile_max_shapes", &ShapeRange::most},
}};

// "pixels:1x3x224x224,k:98": of each input its shape, or its values where it is itself a shape.
std::string shapes_text(const GraphSpec& spec, const Profile& profile, std::int64_t ShapeRange::*bound) {
    std::string text;
    for (const TensorSpec& input : spec.inputs) {
        text += (text.empty() ? "" : ",") + input.name + ":";
        for (std::size_t place = 0; place < input.shape.size(); ++place) {
            const auto* const name = std::get_if<std::string>(&input.shape[place]);
            std::int64_t size = name != nullptr ? profile.at(*name).*bound : std::get<std::int64_t>(input.shape[place]);
            if (trt::is_shape_input(input)) size = profile.at(input.name).*bound;
            const std::size_t times = trt::is_shape_input(input) ? static_cast<std::size_t>(std::get<std::int64_t>(input.shape[0])) : 1;
            for (std::size_t time = 0; time < times; ++time) text += (place + time == 0 ? "" : "x") + std::to_string(size);
        }
    }
    return text;
}

// Throws Error(Status::engine): it cannot be read.
std::string content_of(const fs::path& path) {
    try {
        return trt::read_file(path);
    } catch (const std::system_error& cause) {
        throw Error(Status::engine, path.string() + " cannot be read (" + cause.what() + "); delete the folder " + path.parent_path().string() +
                                        " to build its engines again");
    }
}

// SHA-256 of each engine and profile; timing caches change with every build and are not executed.
Digests digests(const fs::path& folder) {
    Digests found;
    std::error_code unknown;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, unknown)) {
        const std::string kind = entry.path().extension().string();
        if (kind == ".engine" || kind == ".profile") found[entry.path().filename().string()] = sha256_text(content_of(entry.path()));
    }
    return found;
}

Digests recorded(const fs::path& record) {
    std::error_code unknown;
    if (!fs::is_regular_file(record, unknown)) return {};
    const nlohmann::json value = nlohmann::json::parse(content_of(record), nullptr, false);
    if (!value.is_object()) {
        throw Error(Status::engine, record.string() + " is damaged; delete the folder " + record.parent_path().string() + " to build its engines again");
    }
    Digests known;
    for (const auto& [name, digest] : value.items()) known[name] = digest.is_string() ? digest.get<std::string>() : "";
    return known;
}

std::map<std::string, std::string> provider_settings(const EngineSettings& settings, const fs::path& folder) {
    return {{"device_id", std::to_string(settings.device)},
            {"trt_engine_cache_enable", "1"},
            {"trt_engine_cache_path", folder.string()},
            {"trt_timing_cache_enable", "1"},
            {"trt_timing_cache_path", folder.string()},
            {"trt_builder_optimization_level", std::to_string(trt::BuildOptions().level)}};
}

}  // namespace

OrtTensorRtCache::OrtTensorRtCache(const std::string& path, const GraphSpec& spec, const Profile& profile, const EngineSettings& settings, const cuda::Gpu& gpu) {
    std::map<std::string, std::string> shapes;
    std::vector<std::string> texts;
    for (const auto& [name, bound] : kBounds) {
        shapes[name] = shapes_text(spec, profile, bound);
        texts.push_back("\"" + std::string(name) + "\": \"" + shapes[name] + "\"");
    }
    trt::EngineKey key;
    key.onnx_sha256 = trt::onnx_digest(path);
    key.precision = settings.precision;
    key.profiles = "{" + joined(texts) + "}";
    key.builder = "level=" + std::to_string(trt::BuildOptions().level) + " workspace_mib=0";
    key.library = "onnxruntime TensorrtExecutionProvider";
    key.library_version = OrtGetApiBase()->GetVersionString();
    key.device = gpu.name;
    key.compute_capability = gpu.compute_capability;
    key.driver = gpu.driver;
    folder_ = (settings.cache.empty() ? trt::default_root() : fs::path(settings.cache)) / "ort-tensorrt" / key.digest();
    settings_ = provider_settings(settings, folder_);
    settings_.merge(shapes);
}

std::unique_ptr<trt::BuildLock> OrtTensorRtCache::checked() const {
    trt::make_folders(folder_);
    auto alone = std::make_unique<trt::BuildLock>(folder_.string() + ".lock");
    const Digests known = recorded(folder_ / kRecord);
    for (const auto& [name, digest] : digests(folder_)) {
        const auto found = known.find(name);
        if (found != known.end() && found->second == digest) continue;
        throw Error(Status::engine, (folder_ / name).string() + " is not what was built here, so it is not loaded; delete the folder " + folder_.string() +
                                        " to build it again");
    }
    return alone;
}

void OrtTensorRtCache::keep_digests() const {
    trt::replace_file(folder_ / kRecord, nlohmann::json(digests(folder_)).dump(2) + "\n");
}

}  // namespace prtool
