#include <algorithm>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string_view>
#include <utility>
#include <vector>

// After <cstddef> and <cstdio>, which they need and do not include.
#include <jerror.h>
#include <jpeglib.h>

#include "image/decoding.hpp"
#include "image/jpeg_segments.hpp"

namespace prtool {

namespace {

// Pillow hands a file to libjpeg in blocks of this size. Where a file is damaged, the result depends on them: what
// follows the block in which the pixels end is never read, and arithmetic coding must not cross their borders.
constexpr std::size_t kBlockBytes = 65'536;

struct Errors {
    jpeg_error_mgr base;
    std::jmp_buf jump;
    char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void jump_out(j_common_ptr info) {
    auto* errors = reinterpret_cast<Errors*>(info->err);
    errors->base.format_message(info, errors->message);
    std::longjmp(errors->jump, 1);
}

void print_nothing(j_common_ptr) {}

struct Source {
    jpeg_source_mgr base;
    std::size_t to_skip;  // bytes after the ones shown so far
};

void do_nothing(j_decompress_ptr) {}

boolean wait_for_more(j_decompress_ptr) { return FALSE; }

void skip(j_decompress_ptr info, long count) {
    auto* source = reinterpret_cast<Source*>(info->src);
    const std::size_t bytes = count > 0 ? static_cast<std::size_t>(count) : 0;
    const std::size_t now = std::min(bytes, source->base.bytes_in_buffer);
    source->base.next_input_byte += now;
    source->base.bytes_in_buffer -= now;
    source->to_skip = bytes - now;
}

// (a * b) / 255, rounded, for 8-bit values.
int scaled(int a, int b) {
    const int product = a * b + 128;
    return ((product >> 8) + product) >> 8;
}

// Pillow takes every file with four inks for one of Adobe, which stores 255 minus the ink.
void inks_to_rgb(const std::uint8_t* inks, std::int64_t count, std::uint8_t* rgb) {
    for (std::int64_t i = 0; i < count; ++i, inks += 4, rgb += 3) {
        const int light = inks[3];
        for (int c = 0; c < 3; ++c) rgb[c] = static_cast<std::uint8_t>(light - scaled(255 - inks[c], light));
    }
}

// 8, 4 or 2 where so small a part of the sides leaves what is needed, else 1; as Pillow's Image.draft.
std::int64_t part_of(const JpegFacts& facts, const LeastSize& least) {
    const bool turned = orientation(facts.sources) >= 5;
    auto [width, height] = turned ? least(facts.height, facts.width) : least(facts.width, facts.height);
    if (turned) std::swap(width, height);
    const std::int64_t most = std::min(facts.width / width, facts.height / height);
    return most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// One use of libjpeg.
class Decompressor {
public:
    explicit Decompressor(std::string_view file) : unseen_(file) {
        info_.err = jpeg_std_error(&errors_.base);
        errors_.base.error_exit = jump_out;
        errors_.base.output_message = print_nothing;
        source_.base.next_input_byte = reinterpret_cast<const JOCTET*>(file.data());
        source_.base.init_source = do_nothing;
        source_.base.fill_input_buffer = wait_for_more;
        source_.base.skip_input_data = skip;
        source_.base.resync_to_restart = jpeg_resync_to_restart;
        source_.base.term_source = do_nothing;
    }
    ~Decompressor() { jpeg_destroy_decompress(&info_); }
    Decompressor(const Decompressor&) = delete;
    Decompressor& operator=(const Decompressor&) = delete;

    Rgb decode(const JpegFacts& facts, const LeastSize& least) {
        read_header(facts);
        check_size(facts.width, facts.height);
        check_memory(facts.width, facts.height, held(facts), orientation(facts.sources) != 1);
        const std::int64_t part = least ? part_of(facts, least) : 1;
        Rgb image = allocate((facts.width + part - 1) / part, (facts.height + part - 1) / part);
        image.margins.right = static_cast<double>(image.width) - static_cast<double>(facts.width) / static_cast<double>(part);
        image.margins.bottom = static_cast<double>(image.height) - static_cast<double>(facts.height) / static_cast<double>(part);
        info_.scale_num = 1;
        info_.scale_denom = static_cast<unsigned>(part);
        info_.out_color_space = facts.components == 4 ? JCS_CMYK : JCS_RGB;
        complete([this] { return jpeg_start_decompress(&info_) != FALSE; });
        if (facts.components == 4) {
            read_inks(image);
        } else {
            read_rgb(image);
        }
        // Once all pixels are there, a missing end is not damage.
        guarded([this] { return jpeg_finish_decompress(&info_) != FALSE; });
        return image;
    }

private:
    // Runs libjpeg, whose errors jump here. `step` may not hold anything with a destructor: it would not run.
    template <class Step>
    bool guarded(Step step) {
        if (setjmp(errors_.jump) != 0) throw error();
        return step();
    }

    // Runs a step that returns false where it needs more of the file.
    template <class Step>
    void complete(Step step) {
        while (!guarded(step)) show_more();
    }

    DecodeError error() const {
        if (errors_.base.msg_code == JERR_OUT_OF_MEMORY) return too_little_memory(info_.image_width, info_.image_height);
        return damaged(errors_.message);
    }

    void show_more() {
        do {
            if (unseen_.empty()) throw truncated();
            const std::size_t block = std::min(kBlockBytes, unseen_.size());
            unseen_.remove_prefix(block);
            source_.base.bytes_in_buffer += block;
            skip(&info_, static_cast<long>(source_.to_skip));
        } while (source_.to_skip > 0);
    }

    void read_header(const JpegFacts& facts) {
        guarded([this] {
            jpeg_create_decompress(&info_);
            info_.src = &source_.base;
            return true;
        });
        complete([this] {
            int status;
            do {
                status = jpeg_read_header(&info_, FALSE);
            } while (status == JPEG_HEADER_TABLES_ONLY);
            return status != JPEG_SUSPENDED;
        });
        const bool agree = info_.image_width == facts.width && info_.image_height == facts.height;
        if (!agree || info_.num_components != facts.components) throw damaged("it has several frame headers");
    }

    // In several scans, libjpeg holds all coefficients, of 2 bytes.
    Held held(const JpegFacts& facts) {
        const int coefficients = jpeg_has_multiple_scans(&info_) != FALSE ? 2 * facts.components : 0;
        if (facts.components == 1) return {"L", 1, coefficients};
        return {facts.components == 4 ? "CMYK" : "RGB", 4, coefficients};
    }

    void read_rgb(Rgb& image) {
        complete([this, &image] {
            while (info_.output_scanline < info_.output_height) {
                JSAMPROW row = image.pixels.data() + 3 * image.width * static_cast<std::int64_t>(info_.output_scanline);
                if (jpeg_read_scanlines(&info_, &row, 1) != 1) return false;
            }
            return true;
        });
    }

    void read_inks(Rgb& image) {
        std::vector<std::uint8_t> inks(static_cast<std::size_t>(4 * image.width));
        for (std::int64_t y = 0; y < image.height; ++y) {
            complete([this, &inks] {
                JSAMPROW row = inks.data();
                return jpeg_read_scanlines(&info_, &row, 1) == 1;
            });
            inks_to_rgb(inks.data(), image.width, image.pixels.data() + 3 * image.width * y);
        }
    }

    std::string_view unseen_;
    Errors errors_{};
    Source source_{};
    jpeg_decompress_struct info_{};
};

}  // namespace

bool is_jpeg(std::string_view file) { return starts_with(file, "\xFF\xD8\xFF"); }

Decoded decode_jpeg(std::string_view file, const LeastSize& least) {
    const JpegFacts facts = read_jpeg_segments(file);
    return {Decompressor(file).decode(facts, least), orientation(facts.sources)};
}

}  // namespace prtool
