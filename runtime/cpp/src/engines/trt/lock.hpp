// The right to build one engine, among threads and processes.
#pragma once

#include <filesystem>

namespace prtool::trt {

// Held until the end of the scope; waits while another has it. Python's filelock takes the same lock: flock on the same file.
class BuildLock {
public:
    // Throws Error(Status::storage): the file cannot be made or locked.
    explicit BuildLock(const std::filesystem::path& path);
    ~BuildLock();
    BuildLock(const BuildLock&) = delete;
    BuildLock& operator=(const BuildLock&) = delete;

private:
    bool holds_named_file();
    void close_file();
    [[noreturn]] void refuse();

    std::filesystem::path path_;
    int file_ = -1;
};

}  // namespace prtool::trt
