#include "files.hpp"

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <random>

#include <jpeglib.h>
#include <zlib.h>

namespace prtool::test {

Bytes noise(std::size_t size, unsigned seed) {
    std::mt19937 source(seed);
    Bytes bytes(size);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(source());
    return bytes;
}

std::string big16(unsigned value) { return {static_cast<char>(value >> 8), static_cast<char>(value)}; }

std::string big32(unsigned value) { return big16(value >> 16) + big16(value & 0xFFFF); }

std::string exif(int orientation, bool little_endian) {
    const char value = static_cast<char>(orientation);
    const std::string name("Exif\0\0", 6);
    if (little_endian) {
        return name + std::string("II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", 18) + value + std::string(7, '\0');
    }
    return name + std::string("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", 19) + value + std::string(6, '\0');
}

std::string packed(const std::string& data) {
    uLongf size = compressBound(data.size());
    std::string out(size, '\0');
    compress(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(data.data()), data.size());
    out.resize(size);
    return out;
}

std::string chunk(const std::string& name, const std::string& data) {
    const std::string body = name + data;
    const uLong sum = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
    return big32(static_cast<unsigned>(data.size())) + body + big32(static_cast<unsigned>(sum));
}

namespace {

// How many pixels of a row or column a pass of an interlaced image has.
unsigned pass_size(unsigned size, unsigned first, unsigned step) { return (size + step - 1 - first) / step; }

std::string with_filters(const Png& png) {
    constexpr unsigned left[] = {0, 4, 0, 2, 0, 1, 0}, top[] = {0, 0, 4, 0, 2, 0, 1};
    constexpr unsigned across[] = {8, 8, 4, 4, 2, 2, 1}, down[] = {8, 8, 8, 4, 4, 2, 2};
    const int samples = png.colour == 2 ? 3 : png.colour == 4 ? 2 : png.colour == 6 ? 4 : 1;
    std::string rows;
    std::size_t at = 0;
    for (int pass = 0; pass < (png.interlaced ? 7 : 1); ++pass) {
        const unsigned width = png.interlaced ? pass_size(png.width, left[pass], across[pass]) : png.width;
        const unsigned height = png.interlaced ? pass_size(png.height, top[pass], down[pass]) : png.height;
        const std::size_t bytes = (width * static_cast<std::size_t>(samples * png.depth) + 7) / 8;
        for (unsigned y = 0; bytes > 0 && y < height; ++y, at += bytes) {
            rows += static_cast<char>(png.filter);
            rows.append(reinterpret_cast<const char*>(png.samples.data()) + at, bytes);
        }
    }
    return rows;
}

}  // namespace

std::string encoded(const Png& png) {
    const std::string kinds{static_cast<char>(png.depth), static_cast<char>(png.colour), 0, 0, png.interlaced ? '\1' : '\0'};
    return "\x89PNG\r\n\x1A\n" + chunk("IHDR", big32(png.width) + big32(png.height) + kinds) + png.before +
           chunk("IDAT", packed(with_filters(png))) + png.after + chunk("IEND", "");
}

std::string jpeg(const Bytes& pixels, unsigned width, unsigned height, int components, const std::string& exif_block) {
    jpeg_compress_struct info{};
    jpeg_error_mgr errors{};
    info.err = jpeg_std_error(&errors);
    jpeg_create_compress(&info);
    unsigned char* buffer = nullptr;
    unsigned long size = 0;
    jpeg_mem_dest(&info, &buffer, &size);
    info.image_width = width;
    info.image_height = height;
    info.input_components = components;
    info.in_color_space = components == 1 ? JCS_GRAYSCALE : components == 3 ? JCS_RGB : JCS_CMYK;
    jpeg_set_defaults(&info);
    jpeg_set_quality(&info, 100, TRUE);
    jpeg_start_compress(&info, TRUE);
    if (!exif_block.empty()) {
        const auto* bytes = reinterpret_cast<const JOCTET*>(exif_block.data());
        jpeg_write_marker(&info, JPEG_APP0 + 1, bytes, static_cast<unsigned>(exif_block.size()));
    }
    for (unsigned y = 0; y < height; ++y) {
        auto* row = const_cast<JSAMPROW>(pixels.data() + static_cast<std::size_t>(y) * width * static_cast<unsigned>(components));
        jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
    std::string file(reinterpret_cast<const char*>(buffer), size);
    jpeg_destroy_compress(&info);
    std::free(buffer);
    return file;
}

Rgb decoded(const std::string& file) {
    return decode_image(reinterpret_cast<const std::uint8_t*>(file.data()), file.size(), "photo");
}

std::string error_of(const std::string& file, Status* status) {
    try {
        decoded(file);
        return "";
    } catch (const Error& error) {
        if (status != nullptr) *status = error.status();
        return error.what();
    }
}

}  // namespace prtool::test
