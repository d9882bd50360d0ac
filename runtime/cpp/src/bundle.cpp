#include "bundle.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "errors.hpp"
#include "graph_file.hpp"
#include "sha256.hpp"

namespace prtool {

namespace {

namespace fs = std::filesystem;

constexpr const char* kManifestName = "prtool.json";
constexpr std::int64_t kMostManifestBytes = std::int64_t{16} << 20;
constexpr std::int64_t kMostTokenizerBytes = std::int64_t{64} << 20;
constexpr const char* kGraphEnding = ".onnx";
constexpr std::size_t kMostNameBytes = 1024;
constexpr std::size_t kMostPartBytes = 255;

GuardedFile open_manifest(const std::string& root) {
    struct stat found {};
    if (lstat((fs::path(root) / kManifestName).c_str(), &found) != 0) {
        throw Error(Status::bundle, root + " is not a bundle: it has no " + kManifestName + "; make one with 'prtool export -o " + root + "'");
    }
    return {root, kManifestName};
}

std::vector<std::string> parts_of(const std::string& name) {
    std::vector<std::string> parts;
    std::string part;
    std::istringstream text(name);
    while (std::getline(text, part, '/')) parts.push_back(part);
    if (name.empty() || name.back() == '/') parts.emplace_back();
    return parts;
}

bool ends_in(const std::string& text, const std::string& ending) {
    return text.size() >= ending.size() && text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

bool is_plain_part(const std::string& part) {
    return !part.empty() && part != "." && part != ".." && part.size() <= kMostPartBytes;
}

void check_name(const std::string& name) {
    const std::vector<std::string> parts = parts_of(name);
    bool plain = name.size() <= kMostNameBytes && name.find_first_of("\\:*?\"<>|") == std::string::npos;
    plain = plain && std::none_of(name.begin(), name.end(), [](unsigned char letter) { return letter < 0x20 || letter == 0x7f; });
    if (!plain || !std::all_of(parts.begin(), parts.end(), is_plain_part)) {
        throw Error(Status::bundle, "the manifest names '" + shortened(name) + "', which is not a plain relative path inside the bundle; do not use this bundle");
    }
}

FileIdentity check_file(const std::string& root, const std::string& name, const FileDigest& digest, bool verify) {
    const GuardedFile file(root, name);
    if (file.size() != digest.size) {
        throw Error(Status::bundle, file.path() + " has " + std::to_string(file.size()) + " bytes, but the manifest says " + std::to_string(digest.size) +
                                        "; copy or export the bundle again");
    }
    if (verify && sha256_of(file) != digest.sha256) {
        throw Error(Status::bundle, file.path() + " was changed: its SHA-256 is not the manifest's; copy or export the bundle again");
    }
    return file.identity();
}

// Every name is a plain one, and what else the manifest names is among its files.
void check_names(const Manifest& manifest) {
    for (const auto& [name, digest] : manifest.files) check_name(name);
    const auto require = [&manifest](const std::string& what, const std::string& name) {
        if (manifest.files.count(name) != 0) return;
        throw Error(Status::bundle, what + " names '" + shortened(name) + "', which is not among the bundle's files; export the bundle again");
    };
    for (const auto& [precision, roles] : manifest.graphs) {
        for (const auto& [role, graph] : roles) {
            require("graph '" + role + "'", graph.file);
            if (!ends_in(graph.file, kGraphEnding)) throw Error(Status::bundle, "graph '" + role + "' is named '" + shortened(graph.file) + "', but it must end in .onnx");
        }
    }
    if (manifest.classes) require("the class table", manifest.classes->file);
    if (!manifest.text || manifest.text->tokenizer.empty()) return;
    require("the text side", manifest.text->tokenizer);
    if (manifest.files.at(manifest.text->tokenizer).size > kMostTokenizerBytes) {
        throw Error(Status::bundle, "the tokenizer has more than " + std::to_string(kMostTokenizerBytes) + " bytes; do not use this bundle");
    }
}

}  // namespace

Bundle Bundle::open(const std::string& path, bool verify) {
    const GuardedFile manifest = open_manifest(path);
    Bundle bundle(path, read_manifest(manifest.read_all(kMostManifestBytes), manifest.path()));
    bundle.identities_.emplace(kManifestName, manifest.identity());
    bundle.check_files(verify);
    return bundle;
}

void Bundle::check_files(bool verify) {
    check_names(manifest_);
    for (const auto& [name, digest] : manifest_.files) identities_.emplace(name, check_file(path_, name, digest, verify));
    for (const auto& [precision, roles] : manifest_.graphs) {
        for (const auto& [role, graph] : roles) check_graph(open_file(graph.file), graph, manifest_.files);
    }
    check_unchanged();
}

const GraphSpec& Bundle::graph(const std::string& role, const std::string& precision) const {
    const auto roles = manifest_.graphs.find(precision);
    if (roles == manifest_.graphs.end()) {
        throw Error(Status::config, "precision = '" + precision + "', but " + path_ + " holds " + joined(names_of(manifest_.graphs)) + "; export it with --precision " + precision);
    }
    const auto found = roles->second.find(role);
    if (found == roles->second.end()) throw Error(Status::config, "graph = '" + role + "', but " + path_ + " holds " + joined(names_of(roles->second)));
    return found->second;
}

std::string Bundle::file(const std::string& name) const {
    if (manifest_.files.count(name) == 0) {
        throw Error(Status::bundle, path_ + " has no file '" + shortened(name) + "'; it holds " + joined(names_of(manifest_.files)));
    }
    return (fs::path(path_) / name).string();
}

GuardedFile Bundle::open_file(const std::string& name) const {
    file(name);
    GuardedFile found(path_, name);
    if (found.identity() != identities_.at(name)) changed(name);
    return found;
}

void Bundle::check_unchanged() const {
    for (const auto& [name, identity] : identities_) {
        struct stat found {};
        if (lstat((fs::path(path_) / name).c_str(), &found) != 0 || FileIdentity::of(found) != identity) changed(name);
    }
}

void Bundle::changed(const std::string& name) const {
    throw Error(Status::bundle, path_ + " changed since it was opened (" + shortened(name) + " is another file now); open the bundle again");
}

}  // namespace prtool
