#include "engines/trt/files.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <map>
#include <system_error>

namespace prtool::trt {

namespace {

namespace fs = std::filesystem;

constexpr int kReadable = 0666;  // less the process's umask

// An open file; closed at the end of the scope.
class Descriptor {
public:
    Descriptor(const fs::path& path, int flags, int mode = 0) : number_(open(path.c_str(), flags | O_CLOEXEC, mode)) {}
    ~Descriptor() {
        if (number_ >= 0) close(number_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int number() const { return number_; }

private:
    int number_;
};

void write_all(int descriptor, std::string_view content, const fs::path& path) {
    while (!content.empty()) {
        const ssize_t written = write(descriptor, content.data(), content.size());
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) throw storage_error(path, errno);
        content.remove_prefix(static_cast<std::size_t>(written));
    }
}

}  // namespace

Error storage_error(const fs::path& path, int error) {
    static const std::map<int, std::string> reasons = {
        {ENOSPC, "no space left on the disk; free some and call again"},
        {EDQUOT, "the disk quota is used up; free some space and call again"},
        {EROFS, "the file system is read-only; choose another folder for engines"},
        {EACCES, "permission denied; choose another folder for engines"},
        {EPERM, "operation not permitted; choose another folder for engines"},
    };
    const auto known = reasons.find(error);
    return {Status::storage, "cannot write " + path.string() + ": " + (known != reasons.end() ? known->second : std::generic_category().message(error))};
}

std::string read_file(const fs::path& path) {
    const Descriptor file(path, O_RDONLY);
    if (file.number() < 0) throw std::system_error(errno, std::generic_category());
    std::error_code unknown;
    const auto size = fs::file_size(path, unknown);
    std::string content(unknown ? 0 : static_cast<std::size_t>(size), '\0');
    std::size_t filled = 0;
    while (true) {
        // One byte more than the file had shows where it ends, or has grown.
        if (filled == content.size()) content.resize(filled + 1);
        const ssize_t got = read(file.number(), content.data() + filled, content.size() - filled);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw std::system_error(errno, std::generic_category());
        if (got == 0) break;
        filled += static_cast<std::size_t>(got);
    }
    content.resize(filled);
    return content;
}

void write_new_file(const fs::path& path, std::string_view content) {
    const Descriptor file(path, O_WRONLY | O_CREAT | O_EXCL, kReadable);
    if (file.number() < 0) throw storage_error(path, errno);
    write_all(file.number(), content, path);
    if (fsync(file.number()) != 0) throw storage_error(path, errno);
}

void replace_file(const fs::path& path, std::string_view content) {
    static std::atomic<unsigned> made{0};
    make_folders(path.parent_path());
    const std::string mark = "." + std::to_string(getpid()) + "-" + std::to_string(made++) + ".part";
    const fs::path temporary = path.parent_path() / ("." + path.filename().string() + mark);
    std::error_code ignored;
    fs::remove(temporary, ignored);  // of a process that had this number and was killed
    try {
        write_new_file(temporary, content);
        rename_path(temporary, path);
    } catch (const Error&) {
        fs::remove(temporary, ignored);
        throw;
    }
}

void make_folders(const fs::path& path) {
    std::error_code problem;
    fs::create_directories(path, problem);
    if (problem) throw storage_error(path, problem.value());
}

void rename_path(const fs::path& from, const fs::path& to) {
    std::error_code problem;
    fs::rename(from, to, problem);
    if (problem) throw storage_error(to, problem.value());
}

}  // namespace prtool::trt
