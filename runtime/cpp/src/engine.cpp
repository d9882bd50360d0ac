#include "engine.hpp"

#include <sched.h>

#include <algorithm>
#include <thread>

#include "errors.hpp"
#include "text.hpp"

namespace prtool {

namespace {

struct Entry {
    const char* name;
    std::vector<std::string> precisions;
    std::unique_ptr<Engine> (*make)(const EngineSettings&);  // null where this library was built without it
    const char* option;                                      // CMake's, to build with it
};

const std::vector<Entry>& entries() {
    static const std::vector<Entry> known = {
        {"ort", {"fp32", "int8"}, make_ort, "PRTOOL_ONNXRUNTIME_ROOT"},
#if defined(PRTOOL_WITH_OPENVINO)
        {"openvino", {"fp32", "bf16", "int8"}, make_openvino, "PRTOOL_OPENVINO"},
#else
        {"openvino", {"fp32", "bf16", "int8"}, nullptr, "PRTOOL_OPENVINO"},
#endif
    };
    return known;
}

}  // namespace

std::vector<std::string> built_engines() {
    std::vector<std::string> names;
    for (const Entry& entry : entries()) {
        if (entry.make != nullptr) names.emplace_back(entry.name);
    }
    return names;
}

std::unique_ptr<Engine> make_engine(const std::string& name, const EngineSettings& settings) {
    std::vector<std::string> names;
    for (const Entry& entry : entries()) {
        names.emplace_back(entry.name);
        if (name != entry.name) continue;
        if (std::find(entry.precisions.begin(), entry.precisions.end(), settings.precision) == entry.precisions.end()) {
            throw Error(Status::config, "engine " + name + " cannot compute in " + settings.precision + ", but in " + joined(entry.precisions));
        }
        if (entry.make == nullptr) {
            throw Error(Status::engine_unavailable, "this library was built without engine " + name + ", but with " + joined(built_engines()) +
                                                        "; build it with -D" + entry.option);
        }
        return entry.make(settings);
    }
    throw Error(Status::config, "engine = '" + name + "', but it must be one of " + joined(names));
}

int granted_cpus() {
    cpu_set_t granted;
    CPU_ZERO(&granted);
    if (sched_getaffinity(0, sizeof(granted), &granted) == 0) return CPU_COUNT(&granted);
    return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

}  // namespace prtool
