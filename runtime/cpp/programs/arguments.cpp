#include "arguments.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <map>

const char* const kUsage =
    "usage: prtool-run embed BUNDLE PATH... [-o embeddings.npy|embeddings.csv] [options]\n"
    "       prtool-run classify BUNDLE PATH... [--top 5] [-o classes.csv] [options]\n"
    "\n"
    "PATH is a JPEG or PNG file, or a folder, which is searched. Results go to stdout as CSV without -o.\n"
    "\n"
    "  --keep K        patches kept: a ratio (0.6), a count (118) or a count for each location (160,118)  [the bundle's]\n"
    "  --engine NAME   what runs the graphs                                                               [ort]\n"
    "  --mode MODE     fused, split (where patches are ranked) or full (unpruned)                         [fused]\n"
    "  --precision P   arithmetic                                                                         [fp32]\n"
    "  --batch N       images per call                                                                    [8]\n"
    "  --threads N     CPU threads of a call; 0 takes all that the process may use                        [0]\n"
    "  --device N      number of the GPU                                                                  [0]\n"
    "  --cuda-graphs   trt and trt-rtx replay calls of sizes that came before as one CUDA graph\n"
    "  --jpeg-scaling  decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, with nearly the same pixels\n"
    "  --engine-cache FOLDER  where built engines are kept                                                [in the user's cache folder]\n"
    "  --top N         classes per image                                                                  [5]\n"
    "  --help, --version\n";

namespace {

long whole(const std::string& name, const std::string& text, long min) {
    char* end = nullptr;
    errno = 0;
    const long value = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0' || errno != 0 || value < min || value > 1'000'000) {
        throw UsageError(name + " = '" + text + "', but it must be a whole number from " + std::to_string(min) + " to 1000000");
    }
    return value;
}

prtool::Keep keep_of(const std::string& text) {
    if (text.find(',') != std::string::npos) {
        std::vector<std::int64_t> counts;
        for (std::size_t begin = 0; begin <= text.size();) {
            const std::size_t end = std::min(text.find(',', begin), text.size());
            counts.push_back(whole("--keep", text.substr(begin, end - begin), 1));
            begin = end + 1;
        }
        return prtool::Keep::counts(counts);
    }
    if (!text.empty() && text.find_first_not_of("0123456789") == std::string::npos) {
        if (text == "1") throw UsageError("--keep 1 is either a ratio or a count; write 1.0 for every patch");
        return prtool::Keep::count(whole("--keep", text, 1));
    }
    char* end = nullptr;
    const double ratio = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0') throw UsageError("--keep = '" + text + "', but it must be a ratio such as 0.6, a count such as 118, or counts such as 160,118");
    return prtool::Keep::ratio(ratio);
}

}  // namespace

Arguments parse_arguments(int count, const char* const* words) {
    Arguments found;
    const std::map<std::string, std::function<void(const std::string&)>> options = {
        {"--keep", [&](const std::string& text) { found.keep = keep_of(text); }},
        {"--engine", [&](const std::string& text) { found.engine = text; }},
        {"--mode", [&](const std::string& text) { found.mode = text; }},
        {"--precision", [&](const std::string& text) { found.precision = text; }},
        {"--batch", [&](const std::string& text) { found.batch = whole("--batch", text, 1); }},
        {"--threads", [&](const std::string& text) { found.threads = whole("--threads", text, 0); }},
        {"--device", [&](const std::string& text) { found.device = whole("--device", text, 0); }},
        {"--engine-cache", [&](const std::string& text) { found.cache = text; }},
        {"--top", [&](const std::string& text) { found.top = whole("--top", text, 1); }},
        {"-o", [&](const std::string& text) { found.output = text; }},
    };
    const std::map<std::string, bool*> flags = {{"--cuda-graphs", &found.cuda_graphs},
                                                {"--jpeg-scaling", &found.jpeg_scaling},
                                                {"--help", &found.help},
                                                {"-h", &found.help},
                                                {"--version", &found.version}};
    std::vector<std::string> plain;
    for (int place = 1; place < count; ++place) {
        const std::string word = words[place];
        const auto option = options.find(word);
        const auto flag = flags.find(word);
        if (option != options.end()) {
            if (place + 1 == count) throw UsageError(word + " needs a value");
            option->second(words[++place]);
        } else if (flag != flags.end()) {
            *flag->second = true;
        } else if (word.size() > 1 && word[0] == '-') {
            throw UsageError("there is no option " + word);
        } else {
            plain.push_back(word);
        }
    }
    if (found.help || found.version) return found;
    if (plain.empty() || (plain[0] != "embed" && plain[0] != "classify")) throw UsageError("the first word must be embed or classify");
    if (plain.size() < 3) throw UsageError(plain[0] + " needs a bundle and at least one image file or folder");
    found.command = plain[0];
    found.bundle = plain[1];
    found.paths.assign(plain.begin() + 2, plain.end());
    return found;
}
