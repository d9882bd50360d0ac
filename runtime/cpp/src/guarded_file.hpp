// Files of a bundle, opened so that no link, device or pipe can stand in their place, and recognised when they are opened again.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "descriptor.hpp"

namespace prtool {

// Which file it was, and that nothing was written to it since.
struct FileIdentity {
    std::uint64_t device = 0;
    std::uint64_t number = 0;
    std::int64_t size = 0;  // bytes
    std::int64_t modified_ns = 0;

    static FileIdentity of(const struct stat& found);
    bool operator==(const FileIdentity& other) const;
    bool operator!=(const FileIdentity& other) const { return !(*this == other); }
};

// A regular file that is open for reading. Opening it never waits and follows no link in `name`.
class GuardedFile {
public:
    // root: a folder, itself or through a link; name: a plain relative path in it, "/" between its parts.
    // Throws Error(Status::bundle): missing, a link or reached through one, not a regular file, not readable.
    GuardedFile(const std::string& root, const std::string& name);

    const std::string& path() const { return path_; }
    const FileIdentity& identity() const { return identity_; }
    std::int64_t size() const { return identity_.size; }

    // Up to `count` bytes from `offset`; fewer only at the end. Throws Error(Status::bundle): it cannot be read.
    std::size_t read_at(std::int64_t offset, void* out, std::size_t count) const;

    // All bytes. Throws Error(Status::bundle): it has more than `most`, changes while it is read, or cannot be read.
    std::string read_all(std::int64_t most) const;

private:
    std::string path_;
    Descriptor descriptor_{-1};
    FileIdentity identity_;
};

}  // namespace prtool
