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

struct Entry {
    std::uint64_t tag, type, bytes;
    std::string_view field;  // the value itself where it fits into 4 bytes, else where it lies
};

// One directory of a TIFF file, read as far as Pillow would: a value that lies outside the file ends it.
class Directory {
public:
    // The orientation, if this directory has one.
    static std::optional<int> orientation(std::string_view tiff, ByteOrder order) {
        return Directory(tiff, order).find();
    }

private:
    Directory(std::string_view tiff, ByteOrder order) : tiff_(tiff), order_(order) {}

    std::optional<int> find() {
        const std::uint64_t begin = number(tiff_.substr(4, 4), order_);
        const std::optional<std::string_view> count = at(begin, 2);
        const std::uint64_t entries = count ? number(*count, order_) : 0;
        for (std::uint64_t i = 0; i < entries && !ended_; ++i) {
            const std::optional<std::string_view> record = at(begin + 2 + 12 * i, 12);
            if (!record) break;
            const Entry entry = parse(*record);
            if (entry.bytes == 0 || stored_.count(entry.tag) > 0) continue;
            const std::optional<std::string_view> value = value_of(entry);
            if (!value) continue;
            stored_.insert(entry.tag);
            if (entry.tag == kOrientationTag) return first_number(entry, *value);
        }
        return std::nullopt;
    }

    Entry parse(std::string_view record) const {
        const std::uint64_t type = number(record.substr(2, 2), order_);
        const std::uint64_t size = type < kTypeBytes.size() ? kTypeBytes[type] : 0;
        const std::uint64_t count = number(record.substr(4, 4), order_);
        return {number(record.substr(0, 2), order_), type, size * count, record.substr(8, 4)};
    }

    std::optional<std::string_view> value_of(const Entry& entry) {
        if (entry.bytes <= 4) return entry.field.substr(0, entry.bytes);
        outside_bytes_ += entry.bytes;
        if (outside_bytes_ > tiff_.size()) return std::nullopt;
        const std::optional<std::string_view> value = at(number(entry.field, order_), entry.bytes);
        ended_ = !value;
        return value;
    }

    // Any other kind of value than a whole number counts as upright.
    int first_number(const Entry& entry, std::string_view value) const {
        if (!is_whole_number(entry.type)) return kUpright;
        const std::uint64_t first = number(value.substr(0, kTypeBytes[entry.type]), order_);
        return first >= 1 && first <= 8 ? static_cast<int>(first) : kUpright;
    }

    std::optional<std::string_view> at(std::uint64_t begin, std::uint64_t size) const {
        if (begin > tiff_.size() || size > tiff_.size() - begin) return std::nullopt;
        return tiff_.substr(begin, size);
    }

    std::string_view tiff_;
    ByteOrder order_;
    std::set<std::uint64_t> stored_;   // of a tag that comes twice, the first counts
    std::uint64_t outside_bytes_ = 0;  // that values outside of their entries claim, all together
    bool ended_ = false;
};

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
    return Directory::orientation(exif, little ? ByteOrder::little : ByteOrder::big);
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
