// The engine cache on the command line, for tests/runtime/test_cpp_cache.py, which compares it with the Python package's.
// A key is a JSON object on stdin; what was found is one on stdout; an error of the library is its message, and 1.
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "engines/trt/cache.hpp"
#include "engines/trt/shapes.hpp"
#include "errors.hpp"

namespace {

using nlohmann::json;
namespace trt = prtool::trt;

constexpr const char* kUsage =
    "usage: prtool-cache-probe digest < KEY\n"
    "       prtool-cache-probe onnx FILE\n"
    "       prtool-cache-probe root\n"
    "       prtool-cache-probe recipe PROFILES           the profiles read and written again, and the usual options\n"
    "       prtool-cache-probe obtain ROOT SOURCE CONTENT MILLISECONDS < KEY\n"
    "       prtool-cache-probe latest ROOT < KEY\n";

trt::EngineKey key_of_stdin() {
    const json value = json::parse(std::string(std::istreambuf_iterator<char>(std::cin), {}));
    trt::EngineKey key;
    for (const auto& [name, field] : trt::kKeyFields) key.*field = value.at(name).get<std::string>();
    return key;
}

json obtain(const std::vector<std::string>& words) {
    const trt::EngineCache cache(words[1]);
    const auto build = [&words] {
        std::cerr << "building" << std::endl;
        std::this_thread::sleep_for(std::chrono::milliseconds(std::atoi(words[4].c_str())));
        return words[3];
    };
    const trt::CachedEngine found = cache.obtain(key_of_stdin(), build, words[2]);
    return {{"path", found.path.string()}, {"built", found.built}, {"reason", found.reason}, {"content", found.content}, {"seconds", found.record.seconds}};
}

json answer(const std::vector<std::string>& words) {
    const std::string& verb = words.front();
    if (verb == "digest") return key_of_stdin().digest();
    if (verb == "root") return trt::default_root().string();
    if (verb == "onnx") return trt::onnx_digest(words.at(1));
    if (verb == "recipe") return {{"profiles", trt::profiles_text(trt::parse_profiles(words.at(1)))}, {"builder", trt::builder_text({})}};
    if (verb == "obtain" && words.size() == 5) return obtain(words);
    if (verb == "latest" && words.size() == 2) {
        const auto last = trt::EngineCache(words[1]).latest(key_of_stdin(), {&trt::EngineKey::profiles, &trt::EngineKey::builder});
        return last ? json(last->key.profiles) : json();
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
