#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "image/bytes.hpp"
#include "image/formats.hpp"
#include "image/inflate.hpp"
#include "image/memory.hpp"
#include "image/png_facts.hpp"
#include "image/png_pixels.hpp"
#include "image/refusal.hpp"

namespace prtool {

namespace {

constexpr std::string_view kMagic = "\x89PNG\r\n\x1A\n";

// Pillow hands image data to zlib in pieces of this size. Where a file is damaged behind its last pixel, it depends on
// them whether that is seen.
constexpr std::size_t kPieceBytes = 65'536;

struct Chunk {
    std::string_view name;
    std::size_t size = 0;
};

bool is_name(std::string_view text) {
    constexpr std::string_view letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_";
    return text.find_first_not_of(letters) == text.npos;
}

Held held(const PngLayout& layout) {
    switch (layout.colour) {
        case PngColour::rgb: return {"RGB", 4};
        case PngColour::rgb_alpha: return {"RGBA", 4};
        case PngColour::grey_alpha: return {"LA", 4};
        case PngColour::palette: return {"P", 1};
        case PngColour::grey: break;
    }
    if (layout.depth == 16) return {"I;16", 2};
    return {layout.depth == 1 ? "1" : "L", 1};
}

// Walks once through a file. Only checksums before the image data are checked, as in Pillow.
class PngReader {
public:
    explicit PngReader(std::string_view file) : rest_(file.substr(kMagic.size())) {}

    Decoded decode();

private:
    std::optional<Chunk> next_chunk();
    std::string_view take(std::size_t size);
    void skip(std::size_t size);
    void check_sum(std::string_view name, std::string_view data);
    void read_header();
    void begin_image_data(const Chunk& chunk);
    std::string_view next_piece();
    void read_trailer();

    std::string_view rest_;
    PngFacts facts_;
    std::size_t image_bytes_ = 0;  // that the current chunk of image data still has
    bool several_frames_ = false;
};

// None where the file ends, or is no sequence of chunks any more.
std::optional<Chunk> PngReader::next_chunk() {
    if (rest_.size() < 8 || !is_name(rest_.substr(4, 4))) return std::nullopt;
    const Chunk chunk{rest_.substr(4, 4), number(rest_.substr(0, 4))};
    skip(8);
    return chunk;
}

std::string_view PngReader::take(std::size_t size) {
    if (size > rest_.size()) throw damaged("Truncated File Read");
    const std::string_view data = rest_.substr(0, size);
    skip(size);
    return data;
}

void PngReader::skip(std::size_t size) { rest_.remove_prefix(std::min(size, rest_.size())); }

void PngReader::check_sum(std::string_view name, std::string_view data) {
    const auto bytes = [](std::string_view text) { return reinterpret_cast<const Bytef*>(text.data()); };
    const uLong sum = crc32_z(crc32_z(0, bytes(name), name.size()), bytes(data), data.size());
    if (number(take(4)) != sum) throw damaged("broken PNG file (bad header checksum in " + std::string(name) + ")");
}

// Reads up to the first image data.
void PngReader::read_header() {
    for (;;) {
        const std::optional<Chunk> chunk = next_chunk();
        if (!chunk) throw damaged("broken PNG file");
        if (chunk->name == "IEND") throw damaged("it has no image data");
        if (facts_.layout && (chunk->name == "IDAT" || chunk->name == "fdAT")) {
            const bool has_another = facts_.frame_count && !facts_.frame;  // one that is no part of the animation
            several_frames_ = facts_.frame_count.value_or(1) + (has_another ? 1 : 0) > 1;
            return begin_image_data(*chunk);
        }
        const std::string_view data = take(chunk->size);
        facts_.take(chunk->name, data);
        check_sum(chunk->name, data);
    }
}

void PngReader::begin_image_data(const Chunk& chunk) {
    image_bytes_ = chunk.size;
    if (chunk.name != "fdAT") return;
    const std::string_view sequence_number = take(std::min<std::size_t>(chunk.size, 4));
    facts_.take(chunk.name, sequence_number);
    image_bytes_ -= sequence_number.size();
}

std::string_view PngReader::next_piece() {
    while (image_bytes_ == 0) {
        skip(4);
        const std::optional<Chunk> chunk = next_chunk();
        if (!chunk || (chunk->name != "IDAT" && chunk->name != "DDAT" && chunk->name != "fdAT")) throw truncated();
        begin_image_data(*chunk);
    }
    if (rest_.empty()) throw truncated();
    const std::string_view piece = rest_.substr(0, std::min(kPieceBytes, image_bytes_));
    skip(piece.size());
    image_bytes_ -= piece.size();
    return piece;
}

// Reads what stands behind the image data; the file may also just end there.
void PngReader::read_trailer() {
    skip(image_bytes_);
    for (;;) {
        skip(4);
        const std::optional<Chunk> chunk = next_chunk();
        if (!chunk || chunk->name == "IEND") return;
        if (chunk->name == "fcTL" && several_frames_) return;
        facts_.take(chunk->name, take(chunk->size));
    }
}

Decoded PngReader::decode() {
    read_header();
    check_size(facts_.width, facts_.height);
    check_memory(facts_.width, facts_.height, held(*facts_.layout), false);
    Rgb image = allocate(facts_.width, facts_.height);
    PngPixels pixels(facts_, image);
    while (!pixels.take(next_piece())) continue;
    read_trailer();
    // Where it is turned may stand behind the pixels.
    const int turned = orientation(facts_.sources);
    if (turned != 1) check_memory(facts_.width, facts_.height, held(*facts_.layout), true);
    return {std::move(image), turned};
}

}  // namespace

bool is_png(std::string_view file) { return starts_with(file, kMagic); }

Decoded decode_png(std::string_view file) { return PngReader(file).decode(); }

}  // namespace prtool
