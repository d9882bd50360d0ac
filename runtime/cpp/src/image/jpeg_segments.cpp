#include "image/jpeg_segments.hpp"

#include <string>

namespace prtool {

namespace {

constexpr std::uint8_t kStartOfScan = 0xDA, kTables = 0xDB, kHierarchy = 0xDE;
constexpr std::uint8_t kApp0 = 0xE0, kApp1 = 0xE1, kApp14 = 0xEE, kComment = 0xFE;

bool is_frame(std::uint8_t marker) {
    const bool other = marker == 0xC4 || marker == 0xC8 || marker == 0xCC;
    return (marker >= 0xC0 && marker <= 0xCF && !other) || marker == kHierarchy;
}

// Markers without a segment after them.
bool is_bare(std::uint8_t marker) {
    return marker == 0xC8 || (marker >= 0xD0 && marker <= 0xD9) || (marker >= 0xF0 && marker < kComment);
}

void read_frame(std::string_view segment, JpegFacts& facts) {
    if (segment.size() < 6 || (segment.size() - 6) % 3 != 0) throw damaged("its frame header is cut off");
    const int bits = static_cast<int>(number(segment.substr(0, 1)));
    if (bits != 8) throw damaged("cannot handle " + std::to_string(bits) + "-bit layers");
    facts.height = static_cast<std::int64_t>(number(segment.substr(1, 2)));
    facts.width = static_cast<std::int64_t>(number(segment.substr(3, 2)));
    facts.components = static_cast<int>(number(segment.substr(5, 1)));
    if (facts.components != 1 && facts.components != 3 && facts.components != 4) {
        throw damaged("cannot handle " + std::to_string(facts.components) + "-layer images");
    }
}

void check_tables(std::string_view segment) {
    while (!segment.empty()) {
        const std::size_t bytes = number(segment.substr(0, 1)) < 16 ? 65 : 129;
        if (segment.size() < bytes) throw damaged("bad quantization table marker");
        segment.remove_prefix(bytes);
    }
}

void read_app1(std::string_view segment, OrientationSources& sources) {
    constexpr std::string_view exif("Exif\0\0", 6), xmp("http://ns.adobe.com/xap/1.0/\0", 29);
    if (starts_with(segment, exif)) {
        // EXIF data of more than 64 KB go on in the next segment.
        if (sources.exif) {
            sources.exif->append(segment.substr(exif.size()));
        } else {
            sources.exif = std::string(segment);
        }
    } else if (starts_with(segment, xmp)) {
        sources.xmp = std::string(segment.substr(xmp.size()));
    }
}

void read_segment(std::uint8_t marker, std::string_view segment, JpegFacts& facts) {
    constexpr std::size_t shortest_head = 7;  // the name, and a version of two bytes
    if (is_frame(marker)) {
        read_frame(segment, facts);
    } else if (marker == kTables) {
        check_tables(segment);
    } else if (marker == kApp1) {
        read_app1(segment, facts.sources);
    } else if ((marker == kApp0 && starts_with(segment, "JFIF")) || (marker == kApp14 && starts_with(segment, "Adobe"))) {
        if (segment.size() < shortest_head) throw damaged("its JFIF or Adobe segment is cut off");
    }
}

// Moves `at` past the next marker: 0xFF, perhaps several of them, and a byte above 0.
std::uint8_t next_marker(std::string_view file, std::size_t& at) {
    for (;;) {
        at = file.find('\xFF', at);
        at = file.find_first_not_of('\xFF', at);
        if (at == file.npos) throw damaged("it has no image data");
        const auto marker = static_cast<std::uint8_t>(file[at++]);
        if (marker == 0) continue;
        if (marker < 0xC0) throw damaged("no marker found");
        return marker;
    }
}

std::string_view next_segment(std::string_view file, std::size_t& at) {
    if (file.size() - at < 2) throw truncated();
    const std::size_t size = number(file.substr(at, 2));
    if (size > file.size() - at) throw truncated();
    const std::string_view segment = file.substr(at + 2, size < 2 ? 0 : size - 2);
    at += 2 + segment.size();
    return segment;
}

}  // namespace

JpegFacts read_jpeg_segments(std::string_view file) {
    JpegFacts facts;
    std::size_t at = 2;  // after the start of the image
    for (;;) {
        const std::uint8_t marker = next_marker(file, at);
        if (is_bare(marker)) continue;
        const std::string_view segment = next_segment(file, at);
        if (marker == kStartOfScan) return facts;
        read_segment(marker, segment, facts);
    }
}

}  // namespace prtool
