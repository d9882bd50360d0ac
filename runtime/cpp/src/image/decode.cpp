#include "image/decode.hpp"

#include <cerrno>
#include <cstdio>
#include <memory>
#include <new>
#include <string_view>
#include <system_error>
#include <utility>

#include "errors.hpp"
#include "image/formats.hpp"
#include "image/refusal.hpp"
#include "image/turn.hpp"

namespace prtool {

namespace {

constexpr std::size_t kReadBytes = 1 << 20;

std::string_view text_of(const std::uint8_t* bytes, std::size_t size) {
    return {reinterpret_cast<const char*>(bytes), size};
}

bool is_known(std::string_view file) { return is_jpeg(file) || is_png(file); }

Rgb decode(std::string_view file) {
    if (!is_known(file)) throw Refusal(Status::image, "is not an image of a known format (JPEG, PNG)");
    Decoded decoded = is_jpeg(file) ? decode_jpeg(file) : decode_png(file);
    return upright(std::move(decoded.image), decoded.orientation);
}

Error cannot_be_opened(const std::string& path) {
    const int reason = errno;
    return {Status::image, path + " cannot be opened: " + std::generic_category().message(reason)};
}

struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
};

// All of an image; of anything else only a part, because a device need not have an end.
std::vector<std::uint8_t> read_image(const std::string& path) {
    const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
    if (!file) throw cannot_be_opened(path);
    std::vector<std::uint8_t> bytes;
    std::size_t size = 0;
    do {
        bytes.resize(size + kReadBytes);
        size += std::fread(bytes.data() + size, 1, kReadBytes, file.get());
        if (std::ferror(file.get())) throw cannot_be_opened(path);
    } while (!std::feof(file.get()) && is_known(text_of(bytes.data(), size)));
    bytes.resize(size);
    return bytes;
}

}  // namespace

Rgb decode_image(const std::uint8_t* bytes, std::size_t size, const std::string& name) {
    if (size == 0) throw Error(Status::image, name + " is empty (0 bytes)");
    try {
        return decode(text_of(bytes, size));
    } catch (const Refusal& refusal) {
        throw Error(refusal.status(), name + " " + refusal.what());
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
