#include "engine.hpp"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <thread>

#include "errors.hpp"

namespace prtool {

namespace {

using Make = std::unique_ptr<Engine> (*)(const EngineSettings&);

struct Entry {
    const char* name;
    std::vector<std::string> precisions;
    Make make;           // null where this library was built without it
    const char* option;  // CMake's, to build with it
    bool cuda_graphs = false;
};

#if defined(PRTOOL_WITH_OPENVINO)
constexpr Make kOpenVino = make_openvino;
#else
constexpr Make kOpenVino = nullptr;
#endif
#if defined(PRTOOL_WITH_CUDA)
constexpr Make kOrtCuda = make_ort_cuda;
#else
constexpr Make kOrtCuda = nullptr;
#endif
#if defined(PRTOOL_WITH_TENSORRT)
constexpr Make kTrt = make_trt;
#else
constexpr Make kTrt = nullptr;
#endif
#if defined(PRTOOL_WITH_TENSORRT_RTX)
constexpr Make kTrtRtx = make_trt_rtx;
#else
constexpr Make kTrtRtx = nullptr;
#endif

const std::vector<Entry>& entries() {
    static const std::vector<Entry> known = {
        {"ort", {"fp32", "int8"}, make_ort, "PRTOOL_ONNXRUNTIME_ROOT=<its folder>"},
        {"ort-cuda", {"fp32", "fp16"}, kOrtCuda, "PRTOOL_CUDA=ON"},
        {"openvino", {"fp32", "bf16", "int8"}, kOpenVino, "PRTOOL_OPENVINO=ON"},
        {"trt", {"fp32", "fp16", "bf16"}, kTrt, "PRTOOL_TENSORRT_INCLUDE=<folder of its headers>", true},
        {"trt-rtx", {"fp32", "fp16", "bf16"}, kTrtRtx, "PRTOOL_TENSORRT_RTX_INCLUDE=<folder of its headers>", true},
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
        if (settings.cuda_graphs && !entry.cuda_graphs) throw Error(Status::config, "engine " + name + " records no CUDA graphs; trt and trt-rtx do");
        return entry.make(settings);
    }
    throw Error(Status::config, "engine = '" + name + "', but it must be one of " + joined(names));
}

namespace {

// CPUs that one control group grants, of either version; infinity where it sets no quota ("max", or -1).
double cpu_quota(const std::string& folder) {
    double quota = 0, period = 0;
    std::ifstream both(folder + "/cpu.max");
    if (!(both >> quota >> period)) {
        std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
        std::ifstream(folder + "/cpu.cfs_period_us") >> period;
    }
    return quota > 0 && period > 0 ? quota / period : std::numeric_limits<double>::infinity();
}

}  // namespace

// As prtool.cpus does it: the quotas of every group around the process count (`docker --cpus`), rounded up.
int granted_cpus() {
    cpu_set_t bound;
    CPU_ZERO(&bound);
    double granted = sched_getaffinity(0, sizeof(bound), &bound) == 0 ? CPU_COUNT(&bound) : std::max(1U, std::thread::hardware_concurrency());
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        const std::size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
        if (path.find("..") != std::string::npos || (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos)) continue;
        // A container often sees its own group as the mount itself, so every group up to there is checked.
        for (std::size_t end = path.size(); end != std::string::npos; end = end == 0 ? std::string::npos : path.rfind('/', end - 1)) {
            for (const std::string& mount : {std::string(), "/" + controllers, std::string("/cpu"), std::string("/unified")}) {
                granted = std::min(granted, cpu_quota("/sys/fs/cgroup" + mount + path.substr(0, end)));
            }
        }
    }
    return std::max(1, static_cast<int>(std::ceil(granted)));
}

}  // namespace prtool
