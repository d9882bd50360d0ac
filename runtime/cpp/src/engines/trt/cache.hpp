// Built engines on disk: each in a folder named by its key, checked before use, never built twice at once. The Python package
// keeps its engines in the same folders, and each takes what the other built.
#pragma once

#include <filesystem>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "engines/trt/cache_key.hpp"
#include "engines/trt/cache_record.hpp"

namespace prtool::trt {

struct CachedEngine {
    std::filesystem::path path;  // of the engine file
    BuildRecord record;
    std::string content;  // the engine, which passed its check
    bool built = false;   // by this call; else it was found
    std::string reason;   // why it was built or could be taken
};

// A folder of built engines; many threads and processes may use it at once.
//
// Whoever can write to the folder can make this process run their code: an engine is native code, and its digest lies
// beside it. The check finds damage, not an attack.
class EngineCache {
public:
    using Build = std::function<std::string()>;  // makes the engine

    // Touches nothing yet; "" takes `default_root()`.
    explicit EngineCache(const std::string& root);

    // The engine of `key`: taken where it is there and whole, else built; one process builds it, others wait and take its result.
    // source: path of the ONNX file; an earlier engine of the same path explains what changed.
    // Throws Error(Status::engine): the stored engine or its record is damaged or was altered; nothing of it was loaded;
    // Error(Status::storage): the engine cannot be written, and nothing is left behind; and what `build` throws.
    CachedEngine obtain(const EngineKey& key, const Build& build, const std::string& source) const;

    // The record of the engine used last among those whose keys equal `like` in every field but the ones ignored.
    std::optional<BuildRecord> latest(const EngineKey& like, std::initializer_list<std::string EngineKey::*> ignored) const;

    // Where builders keep what they measured.
    std::filesystem::path timing_folder() const { return root_ / "timing"; }

private:
    struct Entry {
        BuildRecord record;
        std::filesystem::file_time_type last_used;
    };

    std::optional<CachedEngine> find(const EngineKey& key) const;
    CachedEngine build_entry(const EngineKey& key, const Build& build, const std::string& source, const std::string& reason) const;
    std::string why(const EngineKey& key, const std::string& source) const;
    std::vector<Entry> entries() const;  // those that can be understood, the one used last first
    std::vector<std::filesystem::path> children() const;
    void sweep(const std::string& digest) const;

    std::filesystem::path root_;
};

}  // namespace prtool::trt
