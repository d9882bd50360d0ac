#include "image/png_texts.hpp"

#include <optional>
#include <string>

#include "image/inflate.hpp"
#include "image/refusal.hpp"

namespace prtool {

namespace {

// Pillow's bound on the texts of one file, against small files that unpack to gigabytes.
constexpr std::size_t kMaxBytes = 64 * kMaxInflatedBytes;

// Takes off what stands before the first zero byte, and that byte; without one, everything.
std::string_view take_part(std::string_view& rest) {
    const std::size_t end = rest.find('\0');
    const std::string_view part = rest.substr(0, end);
    rest.remove_prefix(end == rest.npos ? rest.size() : end + 1);
    return part;
}

}  // namespace

void PngTexts::take(std::string_view name, std::string_view data, OrientationSources& sources) {
    if (name == "tEXt") {
        const std::string_view key = take_part(data);
        if (key == "exif") sources.exif = std::string(data);
        store(key, data, sources);
    } else if (name == "zTXt") {
        take_compressed(data, sources);
    } else if (name == "iTXt") {
        take_international(data, sources);
    }
}

void PngTexts::take_compressed(std::string_view data, OrientationSources& sources) {
    const std::string_view key = take_part(data);
    if (!data.empty() && data[0] != 0) throw damaged("Unknown compression method in zTXt chunk");
    const std::optional<std::string> text = inflate_text(data.substr(data.empty() ? 0 : 1));
    store(key, text.value_or(""), sources);
}

void PngTexts::take_international(std::string_view data, OrientationSources& sources) {
    const std::string_view key = take_part(data);
    if (data.size() < 2) return;
    const bool compressed = data[0] != 0;
    if (compressed && data[1] != 0) return;
    data.remove_prefix(2);
    take_part(data);  // the language
    take_part(data);  // the key in that language
    if (!compressed) return store(key, data, sources);
    if (const std::optional<std::string> text = inflate_text(data)) store(key, *text, sources);
}

void PngTexts::store(std::string_view key, std::string_view text, OrientationSources& sources) {
    if (key.empty()) return;
    if (key == "Raw profile type exif") sources.profile = std::string(text);
    if (key == "XML:com.adobe.xmp") sources.xmp = std::string(text);
    bytes_ += text.size();
    if (bytes_ > kMaxBytes) throw damaged("its texts take more than 64 MiB");
}

}  // namespace prtool
