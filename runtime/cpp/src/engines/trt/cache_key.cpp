#include "engines/trt/cache_key.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <system_error>

#include "engines/trt/files.hpp"
#include "errors.hpp"
#include "sha256.hpp"

namespace prtool::trt {

namespace {

constexpr std::size_t kDigestCharacters = 32;
constexpr std::size_t kShownDigestCharacters = 12;
// How protobuf writes {key: "location", value: NAME} of a tensor whose data lie in a file of their own; a length follows.
constexpr std::string_view kLocation{"\x0a\x08location\x12"};

utsname machine() {
    utsname names{};
    if (uname(&names) != 0) throw Error(Status::internal, "the system does not tell its name (uname)");
    return names;
}

// As Python's json.dumps writes text: ASCII alone.
std::string quoted(const std::string& text) {
    return nlohmann::json(text).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

// A file's bytes, mapped: an ONNX file has up to 2 GB of weights.
class MappedFile {
public:
    explicit MappedFile(const std::string& path) {
        const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat status {};
        if (file >= 0 && fstat(file, &status) == 0 && status.st_size > 0) {
            size_ = static_cast<std::size_t>(status.st_size);
            memory_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        }
        if (file >= 0) close(file);
        if (file < 0 || memory_ == MAP_FAILED) throw Error(Status::bundle, path + " cannot be read; copy or export the bundle again");
    }
    ~MappedFile() {
        if (memory_ != nullptr) munmap(memory_, size_);
    }
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    std::string_view content() const { return {static_cast<const char*>(memory_), size_}; }

private:
    void* memory_ = nullptr;
    std::size_t size_ = 0;
};

// No control character. Names whose bytes are no UTF-8 are left out elsewhere: Python looks for them under another name.
bool printable(const std::string& text) {
    for (std::size_t place = 0; place < text.size(); ++place) {
        const auto byte = static_cast<unsigned char>(text[place]);
        if (byte < 0x20 || byte == 0x7f) return false;
        // U+0080 to U+009F
        if (byte == 0xc2 && place + 1 < text.size() && static_cast<unsigned char>(text[place + 1]) < 0xa0) return false;
    }
    return true;
}

bool is_utf8(const std::string& text) {
    try {
        nlohmann::json(text).dump();
        return true;
    } catch (const nlohmann::json::exception&) {
        return false;
    }
}

// Names of the files that the graph's tensors point to, of those that exist: the parser complains about the others.
std::set<std::string> external_files(const std::string& path) {
    const MappedFile file(path);
    const std::string_view content = file.content();
    std::set<std::string> names;
    for (std::size_t hit = content.find(kLocation); hit != std::string_view::npos;) {
        const std::size_t length_at = hit + kLocation.size();
        const auto length = length_at < content.size() ? static_cast<unsigned char>(content[length_at]) : 0U;
        const bool named = length >= 1 && length <= 0x7f;
        if (named) names.emplace(content.substr(length_at + 1, length));
        hit = content.find(kLocation, named ? length_at + 1 : hit + 1);
    }
    const std::filesystem::path folder = std::filesystem::path(path).parent_path();
    std::set<std::string> found;
    for (const std::string& name : names) {
        std::error_code problem;
        if (printable(name) && is_utf8(name) && std::filesystem::is_regular_file(folder / name, problem)) found.insert(name);
    }
    return found;
}

std::string shown(const char* field, const std::string& value) {
    return std::string_view(field) == "onnx_sha256" ? value.substr(0, kShownDigestCharacters) : value;
}

}  // namespace

std::string this_system() {
    return machine().sysname;
}

std::string this_architecture() {
    return machine().machine;
}

std::string EngineKey::digest() const {
    std::map<std::string, std::string> sorted;
    for (const auto& [name, field] : kKeyFields) sorted[name] = this->*field;
    std::string text;
    for (const auto& [name, value] : sorted) text += (text.empty() ? "" : ", ") + quoted(name) + ": " + quoted(value);
    return sha256_text("{" + text + "}").substr(0, kDigestCharacters);
}

std::vector<std::string> EngineKey::changes_since(const EngineKey& earlier) const {
    std::vector<std::string> changes;
    for (const auto& [name, field] : kKeyFields) {
        if (earlier.*field == this->*field) continue;
        changes.push_back(std::string(name) + " changed from '" + shown(name, earlier.*field) + "' to '" + shown(name, this->*field) + "'");
    }
    return changes;
}

bool operator==(const EngineKey& one, const EngineKey& other) {
    return std::all_of(kKeyFields.begin(), kKeyFields.end(), [&](const auto& item) { return one.*item.second == other.*item.second; });
}

std::string onnx_digest(const std::string& path) {
    const std::filesystem::path file(path);
    const std::string folder = file.has_parent_path() ? file.parent_path().string() : ".";
    std::string text = sha256_of(GuardedFile(folder, file.filename().string()));
    for (const std::string& name : external_files(path)) text += name + " " + sha256_of(GuardedFile(folder, name));
    return sha256_text(text);
}

}  // namespace prtool::trt
