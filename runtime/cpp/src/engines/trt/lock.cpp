#include "engines/trt/lock.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "engines/trt/files.hpp"
#include "errors.hpp"

namespace prtool::trt {

BuildLock::BuildLock(const std::filesystem::path& path) : path_(path) {
    make_folders(path.parent_path());
    while (!holds_named_file()) {
    }
}

BuildLock::~BuildLock() {
    close_file();
}

// False where the file was removed between opening and locking: such a lock excludes nobody.
bool BuildLock::holds_named_file() {
    close_file();
    file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (file_ < 0) refuse();
    while (flock(file_, LOCK_EX) != 0) {
        if (errno != EINTR) refuse();
    }
    struct stat status {};
    if (fstat(file_, &status) != 0) refuse();
    return status.st_nlink > 0;
}

void BuildLock::close_file() {
    if (file_ >= 0) close(file_);
    file_ = -1;
}

void BuildLock::refuse() {
    const std::string reason = std::generic_category().message(errno);
    close_file();
    throw Error(Status::storage, "cannot lock " + path_.string() + " (" + reason + "); choose a folder for engines on a local disk that you may write to");
}

}  // namespace prtool::trt
