// The bundle: a directory of graphs and a manifest. Reading it never runs code from it (docs/bundle-format.md).
#pragma once

#include <string>

#include "manifest.hpp"

namespace prtool {

class Bundle {
public:
    // Opens a directory; `verify` checks every file's SHA-256, sizes are always checked.
    // Throws Error(Status::bundle): no bundle, an unknown schema, an unsafe name, or a file missing, changed or a link.
    static Bundle open(const std::string& path, bool verify);

    const std::string& path() const { return path_; }
    const Manifest& manifest() const { return manifest_; }

    // Throws Error(Status::config): the bundle has no such precision or role.
    const GraphSpec& graph(const std::string& role, const std::string& precision) const;

    // The path of one of the bundle's files. Throws Error(Status::bundle): it has none of that name.
    std::string file(const std::string& name) const;

private:
    Bundle(std::string path, Manifest manifest) : path_(std::move(path)), manifest_(std::move(manifest)) {}

    std::string path_;
    Manifest manifest_;
};

}  // namespace prtool
