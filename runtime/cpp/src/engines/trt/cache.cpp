#include "engines/trt/cache.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <ctime>
#include <system_error>

#include "engines/trt/files.hpp"
#include "engines/trt/lock.hpp"
#include "errors.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace prtool::trt {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kDigestCharacters = 32;

// A folder that is removed at the end of the scope, unless it was moved away.
class Scratch {
public:
    explicit Scratch(const fs::path& path) : path_(path) {
        make_folders(path.parent_path());
        std::error_code problem;
        fs::create_directory(path_, problem);
        if (problem) throw storage_error(path_, problem.value());
    }
    ~Scratch() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    const fs::path& path() const { return path_; }

private:
    fs::path path_;
};

// An absolute path as Python's pathlib writes it: without "." and doubled slashes, but with "..".
fs::path absolute(const std::string& given) {
    fs::path path;
    for (const fs::path& part : fs::absolute(given)) {
        if (!part.empty() && part != ".") path /= part;
    }
    return path;
}

bool is_entry_name(const std::string& name) {
    return name.size() == kDigestCharacters && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::string now_utc() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    std::array<char, 32> text{};
    std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S+00:00", &parts);
    return text.data();
}

fs::file_time_type last_use(const fs::path& folder) {
    fs::file_time_type latest = fs::file_time_type::min();
    std::error_code problem;  // the entry may be cleared by another process just now
    for (fs::directory_iterator file(folder, problem), end; !problem && file != end; file.increment(problem)) {
        std::error_code gone;
        const auto time = fs::last_write_time(file->path(), gone);
        if (!gone) latest = std::max(latest, time);
    }
    return latest;
}

void mark_used(const fs::path& folder) {
    // A read-only cache still serves; only its order of use stays as it is.
    (void)utimensat(AT_FDCWD, (folder / kRecordFile).c_str(), nullptr, 0);
}

// Puts a folder in another's place: a reader finds the old one, the new one or, for a moment, none, and then it waits for the lock.
void put_in_place(const fs::path& fresh, const fs::path& folder) {
    const fs::path aside = fs::path(fresh).replace_extension(".old");
    std::error_code unknown;
    const bool replaces = fs::exists(folder, unknown);
    if (replaces) rename_path(folder, aside);
    try {
        rename_path(fresh, folder);
    } catch (const Error&) {
        if (replaces) fs::rename(aside, folder, unknown);
        throw;
    }
    fs::remove_all(aside, unknown);
}

}  // namespace

EngineCache::EngineCache(const std::string& root) : root_(absolute(root.empty() ? default_root().string() : root)) {}

CachedEngine EngineCache::obtain(const EngineKey& key, const Build& build, const std::string& source) const {
    if (auto found = find(key)) return std::move(*found);
    const BuildLock alone(root_ / ".locks" / (key.digest() + ".lock"));
    if (auto found = find(key)) return std::move(*found);
    const std::string from = source.empty() ? "" : absolute(source).string();
    return build_entry(key, build, from, why(key, from));
}

std::optional<BuildRecord> EngineCache::latest(const EngineKey& like, std::initializer_list<std::string EngineKey::*> ignored) const {
    for (const Entry& entry : entries()) {
        EngineKey wanted = like;
        for (const auto field : ignored) wanted.*field = entry.record.key.*field;
        if (wanted == entry.record.key) return entry.record;
    }
    return std::nullopt;
}

std::optional<CachedEngine> EngineCache::find(const EngineKey& key) const {
    const fs::path folder = root_ / key.digest();
    std::optional<BuildRecord> record = read_record(folder);
    if (!record) return std::nullopt;
    if (!(record->key == key)) throw refusal(folder / kRecordFile, "its key is not the one that its folder is named by");
    const fs::path path = folder / kEngineFile;
    std::string content;
    try {
        content = read_file(path);
    } catch (const std::system_error& cause) {
        std::error_code unknown;
        if (!fs::exists(folder, unknown)) return std::nullopt;  // cleared by another process just now
        const bool missing = cause.code() == std::errc::no_such_file_or_directory;
        throw refusal(path, missing ? "it is missing" : std::string("it cannot be read: ") + cause.what());
    }
    const std::string problem = damage(content, *record);
    if (!problem.empty()) throw refusal(path, problem);
    mark_used(folder);
    return CachedEngine{path, std::move(*record), std::move(content), false, "in the cache"};
}

CachedEngine EngineCache::build_entry(const EngineKey& key, const Build& build, const std::string& source, const std::string& reason) const {
    const std::string digest = key.digest();
    sweep(digest);
    const Scratch fresh(root_ / ("." + digest + "." + std::to_string(getpid()) + ".part"));
    const auto started = std::chrono::steady_clock::now();
    std::string content = build();
    if (content.empty()) {
        throw Error(Status::engine, "the builder of " + (source.empty() ? digest : source) + " wrote nothing; build it again with other options");
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
    const double seconds = std::round(took.count() * 1000.0) / 1000.0;
    BuildRecord record{key, source, static_cast<std::int64_t>(content.size()), sha256_text(content), seconds, now_utc()};
    write_new_file(fresh.path() / kEngineFile, content);
    write_new_file(fresh.path() / kRecordFile, record.json());
    put_in_place(fresh.path(), root_ / digest);
    return {root_ / digest / kEngineFile, std::move(record), std::move(content), true, reason};
}

std::string EngineCache::why(const EngineKey& key, const std::string& source) const {
    std::error_code unknown;
    if (fs::exists(root_ / key.digest(), unknown)) return "stale: its record is not of schema " + std::to_string(kRecordSchema);
    std::vector<std::string> fewest;
    for (const Entry& entry : entries()) {
        if (source.empty() || entry.record.source != source) continue;
        const std::vector<std::string> changes = key.changes_since(entry.record.key);
        if (fewest.empty() || changes.size() < fewest.size()) fewest = changes;
    }
    return fewest.empty() ? "not in the cache" : "stale: " + joined(fewest);
}

std::vector<EngineCache::Entry> EngineCache::entries() const {
    std::vector<Entry> found;
    for (const fs::path& folder : children()) {
        if (!is_entry_name(folder.filename().string())) continue;
        try {
            if (auto record = read_record(folder)) found.push_back({std::move(*record), last_use(folder)});
        } catch (const Error&) {
            // A damaged entry is none of those asked for; whoever asks for its key is told.
        }
    }
    std::stable_sort(found.begin(), found.end(), [](const Entry& one, const Entry& other) { return one.last_used > other.last_used; });
    return found;
}

std::vector<fs::path> EngineCache::children() const {
    std::vector<fs::path> found;
    std::error_code problem;
    for (fs::directory_iterator child(root_, problem), end; !problem && child != end; child.increment(problem)) found.push_back(child->path());
    if (problem && problem != std::errc::no_such_file_or_directory) {
        throw Error(Status::storage, "cannot read the engine cache " + root_.string() + " (" + problem.message() + "); choose another folder for engines");
    }
    return found;
}

// Removes what an interrupted build or removal left; the engine's lock is held.
void EngineCache::sweep(const std::string& digest) const {
    const std::string start = "." + digest + ".";
    for (const fs::path& path : children()) {
        if (path.filename().string().compare(0, start.size(), start) != 0) continue;
        std::error_code problem;
        fs::remove_all(path, problem);
        if (problem) throw storage_error(path, problem.value());
    }
}

}  // namespace prtool::trt
