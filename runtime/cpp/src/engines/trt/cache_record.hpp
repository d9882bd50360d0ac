// build.json beside an engine file: what was built, and whether the file still is that.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "engines/trt/cache_key.hpp"
#include "errors.hpp"

namespace prtool::trt {

inline constexpr const char* kEngineFile = "engine.plan";
inline constexpr const char* kRecordFile = "build.json";
inline constexpr int kRecordSchema = 1;

struct BuildRecord {
    EngineKey key;           // what it was built from and for
    std::string source;      // the ONNX file's path at that time, to explain why a later build is needed
    std::int64_t size = 0;   // of the engine file, in bytes
    std::string sha256;      // of the engine file, in hexadecimal
    double seconds = 0.0;    // what the build took
    std::string built_at;    // date and time, UTC, ISO 8601

    std::string json() const;
};

// Where engines are kept when no folder is given: prtool/engines in the user's cache folder.
// Throws Error(Status::storage): the user has no home folder.
std::filesystem::path default_root();

// The record of an entry's folder; nothing where there is no engine, or one of another schema.
// Throws Error(Status::engine): the record is damaged, or is not the one of this folder.
std::optional<BuildRecord> read_record(const std::filesystem::path& folder);

// How an engine file's content differs from what was built; "" for a whole one.
std::string damage(std::string_view content, const BuildRecord& record);

// Refuses a file of the cache: which, why, and what to do.
Error refusal(const std::filesystem::path& path, const std::string& problem);

}  // namespace prtool::trt
