#include "image/decode.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <new>
#include <string_view>
#include <system_error>
#include <utility>

#include "errors.hpp"
#include "image/decoding.hpp"

namespace prtool {

namespace {

constexpr std::size_t kReadBytes = 1 << 20;
constexpr std::size_t kMostPipeBytes = 256'000'000;
constexpr int kWriterMs = 1'000;
constexpr int kSilenceMs = 60'000;

std::string_view text_of(const std::uint8_t* bytes, std::size_t size) {
    return {reinterpret_cast<const char*>(bytes), size};
}

bool is_known(std::string_view file) { return is_jpeg(file) || is_png(file); }

Rgb decode(std::string_view file) {
    if (!is_known(file)) throw DecodeError(Status::image, "is not an image of a known format (JPEG, PNG)");
    Decoded decoded = is_jpeg(file) ? decode_jpeg(file) : decode_png(file);
    return upright(std::move(decoded.image), decoded.orientation);
}

Error cannot_be_opened(const std::string& path, const std::string& reason) {
    return {Status::image, path + " cannot be opened: " + reason};
}

Error system_error(const std::string& path) {
    return cannot_be_opened(path, std::generic_category().message(errno));
}

const char* kind_of(mode_t mode) {
    if (S_ISSOCK(mode)) return "a socket";
    return S_ISCHR(mode) || S_ISBLK(mode) ? "a device" : "of an unknown kind";
}

class Descriptor {
public:
    explicit Descriptor(int number) : number_(number) {}
    ~Descriptor() {
        if (number_ >= 0) close(number_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int number() const { return number_; }

private:
    int number_;
};

// What poll reports of a descriptor within so many milliseconds; 0 for nothing.
short events(int descriptor, int milliseconds) {
    pollfd waited{descriptor, POLLIN, 0};
    int found = 0;
    do {
        found = poll(&waited, 1, milliseconds);
    } while (found < 0 && errno == EINTR);
    return found > 0 ? waited.revents : short{0};
}

// A pipe is not waited for without end: neither for a writer, nor for one that is silent. Returns the bytes that were read, or 0 at
// its end.
std::size_t read_pipe(int descriptor, std::uint8_t* out, std::size_t size, bool begun, const std::string& path) {
    for (;;) {
        const ssize_t got = read(descriptor, out, size);
        if (got > 0) return static_cast<std::size_t>(got);
        // Nothing, and no error: no writer has come yet, or all have gone.
        if (got == 0 && (begun || (events(descriptor, kWriterMs) & POLLIN) == 0)) return 0;
        if (got == 0 || errno == EINTR) continue;
        if (errno != EAGAIN) throw system_error(path);
        // A writer that goes away is an event as well: the next read finds the end.
        if (events(descriptor, kSilenceMs) == 0) throw cannot_be_opened(path, "the pipe gave nothing for " + std::to_string(kSilenceMs / 1000) + " s");
    }
}

// All bytes of a regular file or a pipe.
std::vector<std::uint8_t> read_image(const std::string& path) {
    // O_NONBLOCK: opening a pipe without a writer would not return.
    const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    struct stat found {};
    if (file.number() < 0 || fstat(file.number(), &found) != 0) throw system_error(path);
    if (S_ISDIR(found.st_mode)) throw cannot_be_opened(path, std::generic_category().message(EISDIR));
    const bool pipe = S_ISFIFO(found.st_mode);
    if (!pipe && !S_ISREG(found.st_mode)) throw cannot_be_opened(path, std::string("it is ") + kind_of(found.st_mode) + " and not a regular file");
    const std::size_t most = pipe ? kMostPipeBytes : static_cast<std::size_t>(kMaxBytes);
    std::vector<std::uint8_t> bytes;
    std::size_t size = 0;
    for (std::size_t got = 1; got > 0; size += got) {
        if (size > most) throw cannot_be_opened(path, "it has more than " + std::to_string(most) + " bytes, the most that are read");
        bytes.resize(size + kReadBytes);
        got = read_pipe(file.number(), bytes.data() + size, kReadBytes, size > 0 || !pipe, path);
    }
    bytes.resize(size);
    return bytes;
}

}  // namespace

Rgb decode_image(const std::uint8_t* bytes, std::size_t size, const std::string& name) {
    if (size == 0) throw Error(Status::image, name + " is empty (0 bytes)");
    try {
        return decode(text_of(bytes, size));
    } catch (const DecodeError& error) {
        throw Error(error.status(), name + " " + error.what());
    } catch (const std::bad_alloc&) {
        throw Error(Status::memory, name + " cannot be decoded: the memory does not suffice");
    }
}

Rgb decode_file(const std::string& path) {
    try {
        const std::vector<std::uint8_t> bytes = read_image(path);
        return decode_image(bytes.data(), bytes.size(), path);
    } catch (const std::bad_alloc&) {
        throw Error(Status::memory, path + " cannot be read: the memory does not suffice for its bytes");
    }
}

}  // namespace prtool
