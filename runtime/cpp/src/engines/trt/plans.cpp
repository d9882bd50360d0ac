#include "engines/trt/plans.hpp"

#include <pwd.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include "errors.hpp"
#include "guarded_file.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace prtool::trt {

namespace {

namespace fs = std::filesystem;

constexpr const char* kPlanFile = "engine.plan";
constexpr const char* kRecordFile = "build.json";
constexpr const char* kWeightsFile = "weights.bin";
constexpr std::int64_t kRecordSchema = 1;
constexpr std::int64_t kMaxRecordBytes = std::int64_t{1} << 20;
constexpr std::int64_t kMaxPlanBytes = std::int64_t{1} << 40;
// As the Python package counts it: another number builds something else of the same options.
constexpr const char* kBuilder = "1";
constexpr std::size_t kIdCharacters = 32;

struct Record {
    std::string id;  // its folder's name
    fs::file_time_type last_used = fs::file_time_type::min();
    PlanKey key;
    Plan plan;  // without its content
    std::int64_t size = 0;
    std::string sha256;
};

ShapeRange range_of(const JsonReader& value) {
    value.fields({"min", "opt", "max"});
    const std::int64_t min = value.at("min").whole(1), opt = value.at("opt").whole(min);
    return {min, opt, value.at("max").whole(opt)};
}

Profile profile_of(const JsonReader& value) {
    Profile profile;
    for (const auto& [name, range] : value.entries()) profile[name] = range_of(range);
    return profile;
}

// Nothing where the record is of another schema. Throws Error: it is damaged.
std::optional<Record> read_record(const std::string& root, const std::string& id) {
    const GuardedFile file(root, id + "/" + kRecordFile);
    const nlohmann::json content = parse_strictly(file.read_all(kMaxRecordBytes), file.path());
    const JsonReader value(content, file.path());
    value.fields({"schema"}, {"key", "source", "size", "sha256", "seconds", "built_at"});
    if (value.at("schema").whole() != kRecordSchema) return std::nullopt;
    value.fields({"schema", "key", "source", "size", "sha256", "seconds", "built_at"});
    Record record;
    record.id = id;
    record.size = value.at("size").whole();
    record.sha256 = value.at("sha256").text();
    for (const auto& [name, field] : value.at("key").entries()) {
        if (name == "profiles") {
            record.plan.profiles = field.list<Profile>(profile_of);
        } else if (name == "options") {
            record.plan.version_compatible = field.maybe("version_compatible").value_or(field).boolean();
            record.plan.strip_weights = field.maybe("strip_weights").value_or(field).boolean();
        } else {
            record.key[name] = field.text();
        }
    }
    return record;
}

fs::file_time_type last_use(const fs::path& folder) {
    fs::file_time_type latest = fs::file_time_type::min();
    for (const char* name : {kRecordFile, kPlanFile}) {
        std::error_code gone;  // cleared by another process just now
        const auto time = fs::last_write_time(folder / name, gone);
        if (!gone) latest = std::max(latest, time);
    }
    return latest;
}

bool is_id(const std::string& name) {
    return name.size() == kIdCharacters && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// The records of a folder of engines; those that cannot be read are reasons in `problems`.
std::vector<Record> records_of(const std::string& root, std::vector<std::string>& problems) {
    std::vector<Record> found;
    std::error_code problem;
    for (fs::directory_iterator child(root, problem), end; !problem && child != end; child.increment(problem)) {
        const std::string id = child->path().filename().string();
        if (!is_id(id)) continue;
        try {
            std::optional<Record> record = read_record(root, id);
            if (!record) continue;
            record->last_used = last_use(child->path());
            found.push_back(std::move(*record));
        } catch (const Error& cause) {
            problems.emplace_back(cause.what());
        }
    }
    if (problem && problem != std::errc::no_such_file_or_directory) {
        throw Error(Status::storage, "cannot read the engine cache " + root + " (" + problem.message() + "); choose another folder of engines");
    }
    return found;
}

std::vector<std::string> differences(const PlanKey& wanted, const PlanKey& found) {
    std::vector<std::string> texts;
    for (const auto& [name, value] : wanted) {
        const auto other = found.find(name);
        const std::string built = other == found.end() ? "" : other->second;
        if (built != value) texts.push_back(name + " '" + shortened(built, 32) + "' in place of '" + shortened(value, 32) + "'");
    }
    return texts;
}

Error none_fits(const std::string& root, const PlanKey& key, const std::vector<Record>& records, std::vector<std::string> reasons, const std::string& command) {
    std::optional<std::vector<std::string>> nearest;
    for (const Record& record : records) {
        std::vector<std::string> found = differences(key, record.key);
        if (!nearest || found.size() < nearest->size()) nearest = std::move(found);
    }
    if (nearest) reasons.insert(reasons.begin(), "the nearest has " + joined(*nearest));
    const std::string why = reasons.empty() ? "it holds none" : joined(reasons);
    return {Status::engine, root + " holds no engine of this graph for this machine (" + why + "); build it with '" + command + "'"};
}

}  // namespace

std::string default_root() {
    const char* const chosen = std::getenv("XDG_CACHE_HOME");
    if (chosen != nullptr && fs::path(chosen).is_absolute()) return fs::path(chosen) / "prtool" / "engines";
    const char* home = std::getenv("HOME");
    if (home == nullptr || *home == '\0') {
        const passwd* const user = getpwuid(getuid());
        home = user != nullptr ? user->pw_dir : nullptr;
    }
    if (home == nullptr) throw Error(Status::storage, "the user has no home folder to find engines in; set HOME or XDG_CACHE_HOME, or name a folder of engines");
    return fs::path(home) / ".cache" / "prtool" / "engines";
}

PlanKey plan_key(const std::string& graph_path, PlanKey given) {
    const fs::path graph = fs::absolute(graph_path);
    const std::string folder = graph.parent_path().string();
    utsname machine{};
    uname(&machine);
    std::error_code unknown;
    given["graph_sha256"] = sha256_of(GuardedFile(folder, graph.filename().string()));
    given["weights_sha256"] = fs::exists(graph.parent_path() / kWeightsFile, unknown) ? sha256_of(GuardedFile(folder, kWeightsFile)) : "";
    given["builder"] = kBuilder;
    given["system"] = machine.sysname;
    given["architecture"] = machine.machine;
    return given;
}

Plan find_plan(const std::string& root, const PlanKey& key, const std::string& command) {
    std::vector<std::string> problems;
    const std::vector<Record> records = records_of(root, problems);
    const Record* best = nullptr;
    for (const Record& record : records) {
        if (record.key != key) continue;
        const auto later = [](const Record& one, const Record& other) { return one.last_used == other.last_used ? one.id < other.id : one.last_used > other.last_used; };
        if (best == nullptr || later(record, *best)) best = &record;
    }
    if (best == nullptr) throw none_fits(root, key, records, problems, command);
    Plan plan = best->plan;
    const auto damaged = [&](const std::string& problem) {
        return Error(Status::engine, root + "/" + best->id + "/" + kPlanFile + " is not loaded: " + problem + "; build it again with '" + command + " --rebuild'");
    };
    try {
        const GuardedFile file(root, best->id + "/" + kPlanFile);
        plan.path = file.path();
        plan.content = file.read_all(kMaxPlanBytes);
    } catch (const Error& cause) {
        throw damaged(cause.what());
    }
    if (static_cast<std::int64_t>(plan.content.size()) != best->size) {
        throw damaged("it has " + std::to_string(plan.content.size()) + " bytes, but " + std::to_string(best->size) + " were built");
    }
    if (sha256_text(plan.content) != best->sha256) throw damaged("its SHA-256 is not the one recorded when it was built");
    return plan;
}

}  // namespace prtool::trt
