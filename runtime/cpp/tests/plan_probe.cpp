// Finds engine files on the command line, for tests/runtime/test_cpp_cache.py, where the Python package writes them.
// What was found is a JSON object on stdout; an error of the library is its message, and 1.
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <vector>

#include "engines/trt/plans.hpp"
#include "errors.hpp"
#include "sha256.hpp"

namespace {

using nlohmann::json;
namespace trt = prtool::trt;

constexpr const char* kUsage =
    "usage: prtool-plan-probe root                      the folder of engines\n"
    "       prtool-plan-probe key GRAPH < GIVEN         the key of a graph, from the fields that are given\n"
    "       prtool-plan-probe find ROOT COMMAND < KEY   the plan of that key\n";

trt::PlanKey key_of_stdin() {
    return json::parse(std::string(std::istreambuf_iterator<char>(std::cin), {})).get<trt::PlanKey>();
}

json answer(const std::vector<std::string>& words) {
    if (words.front() == "root") return trt::default_root();
    if (words.front() == "key" && words.size() == 2) return trt::plan_key(words[1], key_of_stdin());
    if (words.front() == "find" && words.size() == 3) {
        const trt::Plan found = trt::find_plan(words[1], key_of_stdin(), words[2]);
        return {{"path", found.path},
                {"sha256", prtool::sha256_text(found.content)},
                {"profiles", trt::profiles_text(found.profiles)},
                {"version_compatible", found.version_compatible},
                {"strip_weights", found.strip_weights}};
    }
    throw prtool::Error(prtool::Status::config, kUsage);
}

}  // namespace

int main(int count, char** arguments) {
    try {
        if (count < 2) throw prtool::Error(prtool::Status::config, kUsage);
        std::cout << answer({arguments + 1, arguments + count}).dump() << "\n";
        return 0;
    } catch (const prtool::Error& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
}
