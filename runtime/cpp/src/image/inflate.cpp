#include "image/inflate.hpp"

#include <algorithm>
#include <new>
#include <vector>

#include "image/refusal.hpp"

namespace prtool {

Inflater::Inflater() {
    if (inflateInit(&stream_) != Z_OK) throw std::bad_alloc();
}

Inflater::~Inflater() { inflateEnd(&stream_); }

void Inflater::feed(std::string_view input) {
    stream_.next_in = reinterpret_cast<const Bytef*>(input.data());
    stream_.avail_in = static_cast<uInt>(input.size());
}

int Inflater::write(std::uint8_t* out, std::size_t size, std::size_t& written) {
    stream_.next_out = out;
    stream_.avail_out = static_cast<uInt>(size);
    const int status = inflate(&stream_, Z_NO_FLUSH);
    written = size - stream_.avail_out;
    return status;
}

std::optional<std::string> inflate_text(std::string_view compressed) {
    constexpr std::size_t most_of_one = 1032;  // bytes that deflate makes of one
    Inflater inflater;
    inflater.feed(compressed);
    std::vector<std::uint8_t> text(std::min(kMaxInflatedBytes, most_of_one * (compressed.size() + 1)));
    std::size_t written = 0;
    const int status = inflater.write(text.data(), text.size(), written);
    if (status != Z_OK && status != Z_BUF_ERROR && status != Z_STREAM_END) return std::nullopt;
    if (status != Z_STREAM_END && inflater.unread() > 0) throw damaged("a compressed text is larger than 1 MiB");
    return std::string(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(written));
}

}  // namespace prtool
