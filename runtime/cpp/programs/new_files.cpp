#include "new_files.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostParts = 4;
constexpr std::size_t kLongestName = 200;  // bytes; a part's name is longer than its file's
constexpr std::size_t kMarkLetters = 8;
constexpr const char* kEnding = ".part";

// What a signal's handler removes: names in memory of their own, for it may neither allocate nor lock.
char unfinished[kMostParts][PATH_MAX];

extern "C" void remove_and_end(int signal) {
    for (const auto& name : unfinished) {
        if (name[0] != '\0') unlink(name);
    }
    constexpr char line[] = "interrupted; nothing was written\n";
    if (write(STDERR_FILENO, line, sizeof(line) - 1) < 0) _exit(1);
    _exit(128 + signal);
}

// Remembers a path while it is unfinished, and its place among the others.
std::size_t remember(const std::string& path) {
    for (std::size_t place = 0; place < kMostParts; ++place) {
        char* const name = unfinished[place];
        if (name[0] != '\0' || path.size() >= PATH_MAX) continue;
        std::memcpy(name + 1, path.c_str() + 1, path.size());
        std::atomic_signal_fence(std::memory_order_release);
        name[0] = path[0];
        return place;
    }
    throw std::runtime_error(path + " cannot be written: its name is too long");
}

std::runtime_error cannot_be_written(const std::string& path, int reason) {
    return std::runtime_error(path + " cannot be written: " + std::strerror(reason));
}

std::string prefix_of(const fs::path& path) {
    return "." + path.filename().string().substr(0, kLongestName) + ".";
}

std::string mark() {
    std::random_device random;
    std::string letters;
    for (std::size_t place = 0; place < kMarkLetters; ++place) letters += "0123456789abcdef"[random() % 16];
    return letters;
}

bool is_part(const std::string& name, const std::string& prefix) {
    const std::string ending = kEnding;
    if (name.size() != prefix.size() + kMarkLetters + ending.size() || name.compare(0, prefix.size(), prefix) != 0) return false;
    return name.compare(name.size() - ending.size(), ending.size(), ending) == 0;
}

}  // namespace

// One file under its hidden name; the descriptor holds a lock as long as the program lives.
struct NewFiles::Part {
    explicit Part(const std::string& place) : path(place) {
        const fs::path file(place);
        const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
        temporary = fs::absolute(folder / (prefix_of(file) + mark() + kEnding)).string();
        remembered = remember(temporary);
        descriptor = open(temporary.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0666);
        const int reason = errno;
        if (descriptor < 0) {
            forget();
            throw cannot_be_written(path, reason);
        }
        // Where a file system has no locks, nothing is swept either.
        static_cast<void>(flock(descriptor, LOCK_EX | LOCK_NB));
    }
    ~Part() {
        if (!done) unlink(temporary.c_str());
        forget();
        close(descriptor);
    }
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

    void forget() { unfinished[remembered][0] = '\0'; }

    std::string path;
    std::string temporary;
    std::size_t remembered = 0;
    int descriptor = -1;
    bool done = false;
};

NewFiles::NewFiles() = default;
NewFiles::~NewFiles() = default;

void NewFiles::write(const std::string& path, const std::function<void(std::ostream&)>& content) {
    sweep(path);
    parts_.push_back(std::make_unique<Part>(path));
    const Part& part = *parts_.back();
    errno = 0;
    std::ofstream file(part.temporary, std::ios::binary);
    if (file) content(file);
    file.close();
    if (!file) throw cannot_be_written(path, errno != 0 ? errno : EIO);
    if (fsync(part.descriptor) != 0) throw cannot_be_written(path, errno);
}

void NewFiles::put() {
    for (const std::unique_ptr<Part>& part : parts_) {
        if (std::rename(part->temporary.c_str(), part->path.c_str()) != 0) throw cannot_be_written(part->path, errno);
        part->done = true;
    }
    parts_.clear();
}

void sweep(const std::string& path) {
    const fs::path file(path);
    const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
    std::error_code ignored;
    for (auto entry = fs::directory_iterator(folder, ignored); !ignored && entry != fs::directory_iterator(); entry.increment(ignored)) {
        if (!is_part(entry->path().filename().string(), prefix_of(file))) continue;
        const int descriptor = open(entry->path().c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        struct stat found {};
        const bool dead = descriptor >= 0 && fstat(descriptor, &found) == 0 && S_ISREG(found.st_mode) && flock(descriptor, LOCK_EX | LOCK_NB) == 0;
        if (dead) unlink(entry->path().c_str());
        if (descriptor >= 0) close(descriptor);
    }
}

void end_cleanly_on_signals() {
    struct sigaction ending {};
    ending.sa_handler = remove_and_end;
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
        struct sigaction before {};
        // Of a program that was started with nohup, or in the background, the signal stays ignored.
        if (sigaction(signal, nullptr, &before) == 0 && before.sa_handler != SIG_IGN) sigaction(signal, &ending, nullptr);
    }
    std::signal(SIGPIPE, SIG_IGN);
}
