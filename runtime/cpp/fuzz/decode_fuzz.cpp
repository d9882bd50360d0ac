// Decodes and prepares any bytes: there must be an image or an error, and nothing else. From runtime/cpp:
//   clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Isrc \
//       fuzz/decode_fuzz.cpp src/image/*.cpp -ljpeg -lspng -lz -o decode_fuzz
//   mkdir -p found && ./decode_fuzz -dict=fuzz/decode.dict -max_len=4096 -timeout=20 found fuzz/corpus
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <zlib.h>

#include "errors.hpp"
#include "image/decoding.hpp"
#include "image/decode.hpp"
#include "image/prepare.hpp"

namespace {

using namespace prtool;

// Large images are slow and find nothing that small ones do not.
constexpr std::uint64_t kMostPixels = 1 << 16;

bool is_large(std::uint64_t width, std::uint64_t height) { return width > 0 && height > kMostPixels / width; }

// Whether any header in the bytes declares a large image.
bool declares_large(std::string_view file) {
    const auto field = [&](std::size_t at, std::size_t size) { return at < file.size() ? number(file.substr(at, size)) : 0; };
    for (std::size_t at = file.find("IHDR"); at != file.npos; at = file.find("IHDR", at + 1)) {
        if (is_large(field(at + 4, 4), field(at + 8, 4))) return true;
    }
    for (std::size_t at = file.find('\xFF'); at != file.npos; at = file.find('\xFF', at + 1)) {
        const bool frame = at + 1 < file.size() && (file[at + 1] & '\xF0') == '\xC0';
        if (frame && is_large(field(at + 5, 2), field(at + 7, 2))) return true;
    }
    return false;
}

// With right checksums in the chunks of a PNG: random bytes would hardly ever get past them.
std::string repaired(std::string file) {
    constexpr std::size_t magic = 8, around = 12;  // length and name before a chunk's data, checksum after them
    if (file.compare(0, 4, "\x89PNG") != 0) return file;
    for (std::size_t at = magic; at + around <= file.size();) {
        const std::size_t size = number(std::string_view(file).substr(at, 4));
        if (size > file.size() - at - around) break;
        const auto* begin = reinterpret_cast<const Bytef*>(file.data() + at + 4);
        const uLong sum = crc32_z(0, begin, 4 + size);
        for (std::size_t i = 0; i < 4; ++i) file[at + 8 + size + i] = static_cast<char>(sum >> (24 - 8 * i));
        at += around + size;
    }
    return file;
}

Preprocess spec_of(std::uint8_t choice) {
    Preprocess spec;
    spec.height = 1 + choice % 5;
    spec.width = 4;
    spec.std = {1, 1, 1};
    spec.interpolation = static_cast<Interpolation>(choice / 5 % 3);
    spec.resize_mode = static_cast<ResizeMode>(choice / 15 % 3);
    spec.crop_rounding = static_cast<CropRounding>(choice / 45 % 2);
    if (spec.resize_mode == ResizeMode::shortest) spec.resize_ratio = 1.0 + choice / 90 % 3 * 0.3;
    return spec;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string file = repaired({reinterpret_cast<const char*>(data), size});
    if (declares_large(file)) return -1;
    try {
        const Rgb image = decode_image(reinterpret_cast<const std::uint8_t*>(file.data()), file.size(), "input");
        const Preprocess spec = spec_of(data[size - 1]);
        std::vector<float> out(3 * static_cast<std::size_t>(spec.height) * static_cast<std::size_t>(spec.width));
        prepare({image.pixels.data(), image.width, image.height, 3 * image.width}, spec, out.data());
    } catch (const Error&) {
    }
    return 0;
}
