// Engine files (plans) that `prtool build` wrote: found by the records next to them, checked and read. Nothing is built or written.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engines/trt/shapes.hpp"

namespace prtool::trt {

// The fields of a record that tell what a plan was built from and for: EngineKey of the Python package without shapes and options.
using PlanKey = std::map<std::string, std::string>;

struct Plan {
    std::string path;     // of the engine file
    std::string content;  // which passed its check
    std::vector<Profile> profiles;
    bool version_compatible = false;  // it brings the part of the library that runs it
    bool strip_weights = false;       // its weights are those of the ONNX file
};

// The user's folder of engines, which `prtool build` fills where no other is named.
// Throws Error(Status::storage): the user has no home folder.
std::string default_root();

// The key of one graph here. given: precision, library, library_version, device, compute_capability and driver.
// Throws Error(Status::bundle): a file cannot be read.
PlanKey plan_key(const std::string& graph_path, PlanKey given);

// The plan with that key that was built or used last.
// root: a folder of engines; command: builds such a plan, for messages.
// Throws Error(Status::engine): there is none, or it is not what was built; Error(Status::storage): the folder cannot be read.
//
// Whoever can write to the folder can make this process run their code: a plan is native code, and its digest lies next to it.
// The check finds damage, not an attack.
Plan find_plan(const std::string& root, const PlanKey& key, const std::string& command);

}  // namespace prtool::trt
