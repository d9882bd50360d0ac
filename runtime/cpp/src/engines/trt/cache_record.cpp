#include "engines/trt/cache_record.hpp"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

#include "engines/trt/files.hpp"
#include "sha256.hpp"

namespace prtool::trt {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

fs::path home() {
    if (const char* given = std::getenv("HOME"); given != nullptr && *given != '\0') return given;
    const passwd* const user = getpwuid(getuid());
    if (user == nullptr || user->pw_dir == nullptr) {
        throw Error(Status::storage, "the user has no home folder to keep engines in; set HOME or XDG_CACHE_HOME, or name a folder for engines");
    }
    return user->pw_dir;
}

bool has_fields(const json& value, const std::set<std::string>& names) {
    if (!value.is_object() || value.size() != names.size()) return false;
    return std::all_of(names.begin(), names.end(), [&](const std::string& name) { return value.contains(name); });
}

bool is_key(const json& value) {
    std::set<std::string> names;
    for (const auto& item : kKeyFields) names.insert(item.first);
    return has_fields(value, names) && std::all_of(value.begin(), value.end(), [](const json& text) { return text.is_string(); });
}

BuildRecord record_of(const json& value, const fs::path& path) {
    if (!has_fields(value, {"key", "source", "size", "sha256", "seconds", "built_at"}) || !is_key(value["key"])) {
        throw refusal(path, "its fields are not those of a record");
    }
    const bool typed = value["source"].is_string() && value["size"].is_number_integer() && value["sha256"].is_string() && value["seconds"].is_number() &&
                       value["built_at"].is_string();
    if (!typed) throw refusal(path, "its values are not of the right kinds");
    BuildRecord record;
    for (const auto& [name, field] : kKeyFields) record.key.*field = value["key"][name].get<std::string>();
    record.source = value["source"].get<std::string>();
    record.size = value["size"].get<std::int64_t>();
    record.sha256 = value["sha256"].get<std::string>();
    record.seconds = value["seconds"].get<double>();
    record.built_at = value["built_at"].get<std::string>();
    return record;
}

json parsed(const std::string& text, const fs::path& path) {
    json value;
    try {
        value = json::parse(text);
    } catch (const json::exception& cause) {
        throw refusal(path, std::string("it cannot be read: ") + cause.what());
    }
    if (!value.is_object()) throw refusal(path, "it is not a JSON object");
    return value;
}

}  // namespace

std::string BuildRecord::json() const {
    nlohmann::ordered_json named;
    for (const auto& [name, field] : kKeyFields) named[name] = key.*field;
    const nlohmann::ordered_json value = {{"schema", kRecordSchema}, {"key", named},         {"source", source},    {"size", size},
                                          {"sha256", sha256},        {"seconds", seconds}, {"built_at", built_at}};
    return value.dump(1, ' ', true, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

fs::path default_root() {
    const char* chosen = std::getenv("XDG_CACHE_HOME");
    const bool usable = chosen != nullptr && fs::path(chosen).is_absolute();
    return (usable ? fs::path(chosen) : home() / ".cache") / "prtool" / "engines";
}

std::optional<BuildRecord> read_record(const fs::path& folder) {
    const fs::path path = folder / kRecordFile;
    std::string text;
    try {
        text = read_file(path);
    } catch (const std::system_error& cause) {
        if (cause.code() != std::errc::no_such_file_or_directory && cause.code() != std::errc::not_a_directory) {
            throw refusal(path, std::string("it cannot be read: ") + cause.what());
        }
        std::error_code unknown;
        if (fs::exists(folder / kEngineFile, unknown)) throw refusal(path, "it is missing");
        return std::nullopt;
    }
    json value = parsed(text, path);
    const auto schema = value.find("schema");
    if (schema == value.end() || *schema != kRecordSchema) return std::nullopt;
    value.erase(schema);
    BuildRecord record = record_of(value, path);
    if (record.key.digest() != folder.filename()) throw refusal(path, "its key is not the one that its folder is named by");
    return record;
}

std::string damage(std::string_view content, const BuildRecord& record) {
    if (record.size < 0 || content.size() != static_cast<std::size_t>(record.size)) {
        return "it has " + std::to_string(content.size()) + " bytes, but " + std::to_string(record.size) + " were built";
    }
    return sha256_text(content) == record.sha256 ? "" : "its SHA-256 is not the one recorded when it was built";
}

Error refusal(const fs::path& path, const std::string& problem) {
    const fs::path folder = path.parent_path();
    const std::string where = folder.parent_path() == default_root() ? "" : " --engine-cache " + folder.parent_path().string();
    return {Status::engine, path.string() + " is not loaded: " + problem + "; remove it with 'prtool engine-cache clear " + folder.filename().string() + where +
                                "', or build again with --rebuild"};
}

}  // namespace prtool::trt
