#include "bundle.hpp"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "errors.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace prtool {

namespace {

namespace fs = std::filesystem;

constexpr const char* kManifestName = "prtool.json";
// A manifest has some kilobytes, with thousands of class names a few hundred.
constexpr std::uintmax_t kMostManifestBytes = std::uintmax_t{64} << 20;

std::string read_text(const fs::path& root) {
    const fs::path path = root / kManifestName;
    std::error_code failed;
    const std::uintmax_t size = fs::file_size(path, failed);
    if (failed) {
        throw Error(Status::bundle, root.string() + " is not a bundle: it has no " + kManifestName + "; make one with 'prtool export -o " + root.string() + "'");
    }
    if (size > kMostManifestBytes) {
        throw Error(Status::bundle, path.string() + " has " + std::to_string(size) + " bytes, far more than a manifest; export the bundle again");
    }
    std::ifstream file(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (file.bad() || text.size() != size) throw Error(Status::bundle, path.string() + " cannot be read; export the bundle again");
    return text;
}

std::vector<std::string> parts_of(const std::string& name) {
    std::vector<std::string> parts;
    std::string part;
    std::istringstream text(name);
    while (std::getline(text, part, '/')) parts.push_back(part);
    if (name.empty() || name.back() == '/') parts.emplace_back();
    return parts;
}

void check_name(const std::string& name) {
    bool plain = name.find_first_of("\\:*?\"<>|") == std::string::npos && name.find('\0') == std::string::npos;
    for (const std::string& part : parts_of(name)) plain = plain && !part.empty() && part != "." && part != "..";
    if (!plain) {
        throw Error(Status::bundle, "the manifest names '" + name + "', which is not a plain relative path inside the bundle; do not use this bundle");
    }
}

void check_file(const fs::path& root, const std::string& name, const FileDigest& digest, bool verify) {
    check_name(name);
    fs::path path = root;
    std::error_code failed;
    for (const std::string& part : parts_of(name)) {
        path /= part;
        if (fs::is_symlink(path, failed)) {
            throw Error(Status::bundle, path.string() + " is a link, and a bundle holds plain files only; copy the bundle with its links resolved");
        }
    }
    if (!fs::is_regular_file(path, failed)) {
        throw Error(Status::bundle, path.string() + " is missing; copy the whole bundle again, or export it again");
    }
    const std::uintmax_t size = fs::file_size(path, failed);
    if (failed || size != static_cast<std::uintmax_t>(digest.size)) {
        throw Error(Status::bundle, path.string() + " has " + std::to_string(size) + " bytes, but the manifest says " + std::to_string(digest.size) +
                                        "; copy or export the bundle again");
    }
    if (verify && sha256_file(path.string()) != digest.sha256) {
        throw Error(Status::bundle, path.string() + " was changed: its SHA-256 is not the manifest's; copy or export the bundle again");
    }
}

template <typename Value>
std::string names_of(const std::map<std::string, Value>& values) {
    std::vector<std::string> names;
    for (const auto& [name, value] : values) names.push_back(name);
    return joined(names);
}

}  // namespace

Bundle Bundle::open(const std::string& path, bool verify) {
    const fs::path root(path);
    Manifest manifest = read_manifest(read_text(root), (root / kManifestName).string());
    for (const auto& [name, digest] : manifest.files) check_file(root, name, digest, verify);
    for (const auto& [precision, roles] : manifest.graphs) {
        for (const auto& [role, graph] : roles) {
            if (manifest.files.count(graph.file) == 0) {
                throw Error(Status::bundle, "graph '" + role + "' names '" + graph.file + "', which is not among the bundle's files; export the bundle again");
            }
        }
    }
    return Bundle(path, std::move(manifest));
}

const GraphSpec& Bundle::graph(const std::string& role, const std::string& precision) const {
    const auto roles = manifest_.graphs.find(precision);
    if (roles == manifest_.graphs.end()) {
        throw Error(Status::config, "precision = '" + precision + "', but " + path_ + " holds " + names_of(manifest_.graphs) + "; export it with --precision " + precision);
    }
    const auto found = roles->second.find(role);
    if (found == roles->second.end()) throw Error(Status::config, "graph = '" + role + "', but " + path_ + " holds " + names_of(roles->second));
    return found->second;
}

std::string Bundle::file(const std::string& name) const {
    if (manifest_.files.count(name) == 0) throw Error(Status::bundle, path_ + " has no file '" + name + "'; it holds " + names_of(manifest_.files));
    return (fs::path(path_) / name).string();
}

}  // namespace prtool
