// The bundle: a directory of graphs and a manifest. Reading it never runs code from it (docs/bundle-format.md).
#pragma once

#include <map>
#include <string>
#include <utility>

#include "guarded_file.hpp"
#include "manifest.hpp"

namespace prtool {

class Bundle {
public:
    // Opens a directory; `verify` checks every file's SHA-256. The manifest's seal, sizes, names and graphs are always checked.
    // Throws Error(Status::bundle): no bundle, an unknown schema, an unsafe name, a file missing, changed, a link or not a regular
    // file, a graph that the exporter does not write, or files replaced meanwhile.
    static Bundle open(const std::string& path, bool verify);

    const std::string& path() const { return path_; }
    const Manifest& manifest() const { return manifest_; }

    // Throws Error(Status::config): the bundle has no such precision or role.
    const GraphSpec& graph(const std::string& role, const std::string& precision) const;

    // The path of one of the bundle's files, for a library that opens it; check_unchanged before and after that.
    // Throws Error(Status::bundle): it has none of that name.
    std::string file(const std::string& name) const;

    // One of the bundle's files, which is still the one that was checked.
    // Throws Error(Status::bundle): it has none of that name, or the bundle changed since it was opened.
    GuardedFile open_file(const std::string& name) const;

    // Holds every file against what lay there when it was checked.
    // Throws Error(Status::bundle): one was changed, replaced or removed since.
    void check_unchanged() const;

private:
    void check_files(bool verify);
    [[noreturn]] void changed(const std::string& name) const;

    Bundle(std::string path, Manifest manifest) : path_(std::move(path)), manifest_(std::move(manifest)) {}

    std::string path_;
    Manifest manifest_;
    std::map<std::string, FileIdentity> identities_;  // of each file, the manifest too, when it was checked
};

}  // namespace prtool
