#include "guarded_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "errors.hpp"

namespace prtool {

namespace {

constexpr std::int64_t kNanoseconds = 1'000'000'000;
// O_NONBLOCK: a pipe without a writer is opened at once, and then rejected for what it is.
constexpr int kReading = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

[[noreturn]] void cannot_be_opened(const std::string& path, int reason, bool is_link) {
    if (is_link) throw Error(Status::bundle, path + " is a link, and a bundle holds plain files only; copy the bundle with its links resolved");
    if (reason == ENOENT || reason == ENOTDIR) throw Error(Status::bundle, path + " is missing; copy the whole bundle again, or export it again");
    throw Error(Status::bundle, path + " cannot be opened: " + std::generic_category().message(reason) + "; copy or export the bundle again");
}

bool is_link(int folder, const std::string& part) {
    struct stat found {};
    return fstatat(folder, part.c_str(), &found, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(found.st_mode);
}

Descriptor open_part(int folder, const std::string& part, int flags, const std::string& path) {
    Descriptor found(openat(folder, part.c_str(), kReading | O_NOFOLLOW | flags));
    if (found.number() >= 0) return found;
    const int reason = errno;
    cannot_be_opened(path, reason, is_link(folder, part));
}

}  // namespace

FileIdentity FileIdentity::of(const struct stat& found) {
    return {static_cast<std::uint64_t>(found.st_dev), static_cast<std::uint64_t>(found.st_ino), static_cast<std::int64_t>(found.st_size),
            found.st_mtim.tv_sec * kNanoseconds + found.st_mtim.tv_nsec};
}

bool FileIdentity::operator==(const FileIdentity& other) const {
    return device == other.device && number == other.number && size == other.size && modified_ns == other.modified_ns;
}

GuardedFile::GuardedFile(const std::string& root, const std::string& name) : path_(root) {
    Descriptor folder(open(root.c_str(), kReading | O_DIRECTORY));
    if (folder.number() < 0) cannot_be_opened(root, errno, false);
    for (std::size_t begin = 0; begin <= name.size();) {
        const std::size_t end = std::min(name.find('/', begin), name.size());
        const std::string part = name.substr(begin, end - begin);
        path_ += (path_.empty() || path_.back() == '/' ? "" : "/") + part;
        folder = open_part(folder.number(), part, end < name.size() ? O_DIRECTORY : 0, path_);
        begin = end + 1;
    }
    struct stat found {};
    if (fstat(folder.number(), &found) != 0) cannot_be_opened(path_, errno, false);
    if (!S_ISREG(found.st_mode)) {
        throw Error(Status::bundle, path_ + " is not a regular file, and a bundle holds plain files only; copy or export the bundle again");
    }
    identity_ = FileIdentity::of(found);
    descriptor_ = std::move(folder);
}

std::size_t GuardedFile::read_at(std::int64_t offset, void* out, std::size_t count) const {
    std::size_t filled = 0;
    while (filled < count) {
        const ssize_t got = pread(descriptor_.number(), static_cast<char*>(out) + filled, count - filled, offset + static_cast<std::int64_t>(filled));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw Error(Status::bundle, path_ + " cannot be read: " + std::generic_category().message(errno) + "; copy or export the bundle again");
        if (got == 0) break;
        filled += static_cast<std::size_t>(got);
    }
    return filled;
}

std::string GuardedFile::read_all(std::int64_t most) const {
    if (size() > most) {
        throw Error(Status::bundle, path_ + " has " + std::to_string(size()) + " bytes, but at most " + std::to_string(most) + " are read; export the bundle again");
    }
    std::string bytes(static_cast<std::size_t>(size()), '\0');
    if (read_at(0, bytes.data(), bytes.size()) != bytes.size()) {
        throw Error(Status::bundle, path_ + " was changed while it was read; copy or export the bundle again");
    }
    return bytes;
}

}  // namespace prtool
