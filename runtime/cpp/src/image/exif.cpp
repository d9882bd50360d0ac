#include "image/decoding.hpp"

#include <array>
#include <cstdint>
#include <set>
#include <string_view>


namespace prtool {

namespace {

constexpr int kUpright = 1;
constexpr std::uint64_t kOrientationTag = 0x0112;

// Bytes a value of each TIFF type takes; 0 for types that are passed over.
constexpr std::array<std::uint64_t, 17> kTypeBytes = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};

bool is_whole_number(std::uint64_t type) {
    return type == 3 || type == 4 || type == 6 || type == 8 || type == 9 || type == 13 || type == 16;
}

// The orientation that a directory of a TIFF file holds, read as far as Pillow would: a value that lies outside the file ends it.
std::optional<int> in_directory(std::string_view tiff, ByteOrder order) {
    const auto at = [tiff](std::uint64_t begin, std::uint64_t size) {
        const bool inside = begin <= tiff.size() && size <= tiff.size() - begin;
        return inside ? std::optional(tiff.substr(begin, size)) : std::nullopt;
    };
    const std::uint64_t begin = number(tiff.substr(4, 4), order);
    const std::optional<std::string_view> count = at(begin, 2);
    const std::uint64_t entries = count ? number(*count, order) : 0;
    std::set<std::uint64_t> stored;   // of a tag that comes twice, the first counts
    std::uint64_t outside_bytes = 0;  // that values outside of their entries claim, all together
    for (std::uint64_t i = 0; i < entries; ++i) {
        const std::optional<std::string_view> record = at(begin + 2 + 12 * i, 12);
        if (!record) break;
        const std::uint64_t tag = number(record->substr(0, 2), order), type = number(record->substr(2, 2), order);
        const std::uint64_t each = type < kTypeBytes.size() ? kTypeBytes[type] : 0, bytes = each * number(record->substr(4, 4), order);
        if (bytes == 0 || stored.count(tag) > 0) continue;
        std::optional<std::string_view> value = record->substr(8, 4);  // its offset, if it is longer
        if (bytes > 4) {
            outside_bytes += bytes;
            if (outside_bytes > tiff.size()) continue;
            value = at(number(*value, order), bytes);
            if (!value) break;
        }
        stored.insert(tag);
        if (tag != kOrientationTag) continue;
        // Any other kind of value than a whole number counts as upright.
        const std::uint64_t first = is_whole_number(type) ? number(value->substr(0, each), order) : 0;
        return first >= 1 && first <= 8 ? static_cast<int>(first) : kUpright;
    }
    return std::nullopt;
}

std::optional<int> in_exif(std::string_view exif) {
    constexpr std::string_view prefix("Exif\0\0", 6);
    for (int i = 0; i < 2 && starts_with(exif, prefix); ++i) exif.remove_prefix(prefix.size());
    if (exif.empty()) return std::nullopt;
    if (exif.size() < 8) return kUpright;
    const bool little = starts_with(exif, "II");
    const bool big = starts_with(exif, "MM");
    const std::string_view mark = exif.substr(2, 2);
    // Pillow also takes either byte order of the mark, and BigTIFF's "+" in big-endian order.
    const bool tiff = mark == std::string_view("\0*", 2) || mark == std::string_view("*\0", 2);
    const bool big_tiff = big && mark == std::string_view("\0+", 2);
    if (!(little || big) || !(tiff || big_tiff)) return kUpright;
    return in_directory(exif, little ? ByteOrder::little : ByteOrder::big);
}

std::optional<int> in_xmp(std::string_view xmp) {
    constexpr std::string_view name = "tiff:Orientation";
    for (std::size_t at = xmp.find(name); at != xmp.npos; at = xmp.find(name, at + 1)) {
        std::string_view rest = xmp.substr(at + name.size());
        if (starts_with(rest, "=\"")) {
            rest.remove_prefix(2);
        } else if (starts_with(rest, ">")) {
            rest.remove_prefix(1);
        } else {
            continue;
        }
        if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
    }
    return std::nullopt;
}

int hex_digit(char letter) {
    if (letter >= '0' && letter <= '9') return letter - '0';
    if (letter >= 'a' && letter <= 'f') return letter - 'a' + 10;
    if (letter >= 'A' && letter <= 'F') return letter - 'A' + 10;
    return -1;
}

// The bytes of an ImageMagick profile: three lines of heading, then pairs of hexadecimal digits.
std::optional<std::string> from_hexadecimal(std::string_view profile) {
    for (int line = 0; line < 3; ++line) {
        const std::size_t end = profile.find('\n');
        profile.remove_prefix(end == profile.npos ? profile.size() : end + 1);
    }
    std::string bytes;
    int high = -1;
    for (const char letter : profile) {
        const bool between = high < 0 && std::string_view(" \t\v\f\r").find(letter) != std::string_view::npos;
        if (letter == '\n' || between) continue;
        const int digit = hex_digit(letter);
        if (digit < 0) return std::nullopt;
        if (high >= 0) bytes.push_back(static_cast<char>(high << 4 | digit));
        high = high < 0 ? digit : -1;
    }
    return high < 0 ? std::optional(bytes) : std::nullopt;
}

}  // namespace

int orientation(const OrientationSources& sources) {
    std::optional<std::string> exif = sources.exif;
    if (!exif && sources.profile) {
        exif = from_hexadecimal(*sources.profile);
        if (!exif) return kUpright;
    }
    std::optional<int> found;
    if (exif) found = in_exif(*exif);
    if (!found) found = in_xmp(sources.xmp);
    return found && *found >= 1 && *found <= 8 ? *found : kUpright;
}

}  // namespace prtool
