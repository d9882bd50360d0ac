#include "image/decode.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <string_view>
#include <system_error>
#include <utility>

#include "descriptor.hpp"
#include "errors.hpp"
#include "image/decoding.hpp"

namespace prtool {

namespace {

constexpr std::size_t kReadBytes = 1 << 20;
constexpr std::size_t kMostPipeBytes = 256'000'000;
constexpr int kWriterMs = 1'000;
constexpr int kSilenceMs = 60'000;

// Rows and columns of a block that are turned together: written one after the other, a whole row of a turned image
// reads a cache line a pixel, 4 times slower for 12 megapixels.
constexpr std::int64_t kBlock = 64;

// Where the turned image finds its pixels: source + y * down + x * across.
struct Steps {
    const std::uint8_t* source;
    std::int64_t across, down;  // in bytes
};

void copy_block(const Steps& steps, std::int64_t left, std::int64_t top, Rgb& turned) {
    const std::int64_t right = std::min(left + kBlock, turned.width);
    const std::int64_t bottom = std::min(top + kBlock, turned.height);
    for (std::int64_t y = top; y < bottom; ++y) {
        const std::uint8_t* from = steps.source + y * steps.down + left * steps.across;
        std::uint8_t* to = turned.pixels.data() + 3 * (y * turned.width + left);
        for (std::int64_t x = left; x < right; ++x, from += steps.across, to += 3) std::memcpy(to, from, 3);
    }
}

std::string_view text_of(const std::uint8_t* bytes, std::size_t size) {
    return {reinterpret_cast<const char*>(bytes), size};
}

bool is_known(std::string_view file) { return is_jpeg(file) || is_png(file); }

Rgb decode(std::string_view file, const LeastSize& least) {
    if (!is_known(file)) throw DecodeError(Status::image, "is not an image of a known format (JPEG, PNG)");
    Decoded decoded = is_jpeg(file) ? decode_jpeg(file, least) : decode_png(file);
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

Rgb upright(Rgb image, int orientation) {
    if (orientation == 1) return image;
    const bool mirrored = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool upside_down = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const bool transposed = orientation >= 5;
    const std::int64_t column = mirrored ? -3 : 3;
    const std::int64_t row = 3 * (upside_down ? -image.width : image.width);
    const std::int64_t first_column = mirrored ? image.width - 1 : 0;
    const std::int64_t first_row = upside_down ? image.height - 1 : 0;

    Rgb turned = transposed ? allocate(image.height, image.width) : allocate(image.width, image.height);
    const std::uint8_t* source = image.pixels.data() + 3 * (first_row * image.width + first_column);
    const Steps steps{source, transposed ? row : column, transposed ? column : row};
    for (std::int64_t top = 0; top < turned.height; top += kBlock) {
        for (std::int64_t left = 0; left < turned.width; left += kBlock) copy_block(steps, left, top, turned);
    }
    // Of the stored image only the last column and row can reach beyond the picture.
    Margins& margins = turned.margins;
    margins = image.margins;
    if (transposed) std::swap(margins.right, margins.bottom);
    if (orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7) std::swap(margins.left, margins.right);
    if (orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8) std::swap(margins.top, margins.bottom);
    return turned;
}

Rgb decode_image(const std::uint8_t* bytes, std::size_t size, const std::string& name, const LeastSize& least) {
    if (size == 0) throw Error(Status::image, name + " is empty (0 bytes)");
    try {
        return decode(text_of(bytes, size), least);
    } catch (const DecodeError& error) {
        throw Error(error.status(), name + " " + error.what());
    } catch (const std::bad_alloc&) {
        throw Error(Status::memory, name + " cannot be decoded: the memory does not suffice");
    }
}

Rgb decode_file(const std::string& path, const LeastSize& least) {
    try {
        const std::vector<std::uint8_t> bytes = read_image(path);
        return decode_image(bytes.data(), bytes.size(), path, least);
    } catch (const std::bad_alloc&) {
        throw Error(Status::memory, path + " cannot be read: the memory does not suffice for its bytes");
    }
}

}  // namespace prtool
