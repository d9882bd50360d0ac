#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>

#include "files.hpp"

using namespace prtool;
using namespace prtool::test;

namespace {

constexpr int kWidth = 24, kHeight = 16;

Bytes flat(int components, std::initializer_list<int> colour) {
    Bytes pixels;
    for (int i = 0; i < kWidth * kHeight; ++i) pixels.insert(pixels.end(), colour.begin(), colour.end());
    return pixels.size() == static_cast<std::size_t>(kWidth * kHeight * components) ? pixels : Bytes{};
}

// Whether all pixels are the colour, within what quality 100 loses.
bool shows(const Rgb& image, std::initializer_list<int> colour) {
    bool near = image.width == kWidth && image.height == kHeight && !image.pixels.empty();
    for (std::size_t i = 0; i < image.pixels.size(); ++i) {
        near = near && std::abs(image.pixels[i] - *(colour.begin() + i % 3)) <= 1;
    }
    return near;
}

std::string segment(unsigned char marker, const std::string& data) {
    return std::string("\xFF") + static_cast<char>(marker) + big16(static_cast<unsigned>(data.size() + 2)) + data;
}

// The file with something put behind its first two bytes.
std::string with(const std::string& file, const std::string& inserted) {
    return file.substr(0, 2) + inserted + file.substr(2);
}

}  // namespace

TEST_CASE("colours, greys and inks become RGB") {
    CHECK(shows(decoded(jpeg(flat(3, {200, 50, 100}), kWidth, kHeight, 3)), {200, 50, 100}));
    CHECK(shows(decoded(jpeg(flat(1, {77}), kWidth, kHeight, 1)), {77, 77, 77}));
    // Files with four inks are read as Adobe writes them, where 255 is no ink: 51 / 255 of white times the light of black.
    CHECK(shows(decoded(jpeg(flat(4, {255, 51, 0, 255}), kWidth, kHeight, 4)), {255, 51, 0}));
    CHECK(shows(decoded(jpeg(flat(4, {255, 255, 51, 100}), kWidth, kHeight, 4)), {100, 100, 20}));
}

TEST_CASE("EXIF turns a JPEG, in both byte orders") {
    const Bytes pixels = flat(3, {1, 2, 3});
    for (const bool little : {false, true}) {
        CHECK(decoded(jpeg(pixels, kWidth, kHeight, 3, exif(6, little))).width == kHeight);
        CHECK(decoded(jpeg(pixels, kWidth, kHeight, 3, exif(3, little))).width == kWidth);
        CHECK(decoded(jpeg(pixels, kWidth, kHeight, 3, exif(9, little))).width == kWidth);
    }
    CHECK(decoded(jpeg(pixels, kWidth, kHeight, 3, exif(6).substr(0, 20))).width == kWidth);
    CHECK(decoded(jpeg(pixels, kWidth, kHeight, 3, "Exif")).width == kWidth);
    const std::string xmp = std::string("http://ns.adobe.com/xap/1.0/\0", 29) + "<a tiff:Orientation=\"8\"/>";
    CHECK(decoded(jpeg(pixels, kWidth, kHeight, 3, xmp)).width == kHeight);
}

TEST_CASE("a truncated JPEG is rejected, and one that goes on behind its pixels is not") {
    const std::string file = jpeg(noise(3 * kWidth * kHeight), kWidth, kHeight, 3);
    CHECK(error_of(file.substr(0, file.size() - 2) + std::string(20, '\0')).empty());
    for (std::size_t size = 3; size + 40 < file.size(); size += 7) {
        CHECK(error_of(file.substr(0, size)).substr(0, 43) == "photo is damaged, truncated or unsupported:");
    }
    CHECK(error_of(file + std::string(200'000, 'x')).empty());
}

TEST_CASE("headers that Pillow rejects are rejected") {
    const std::string file = jpeg(flat(3, {1, 2, 3}), kWidth, kHeight, 3);
    REQUIRE(error_of(file).empty());
    CHECK(error_of(with(file, segment(0xFE, "a comment"))).empty());
    CHECK(error_of(with(file, "\xFF\xFF")).empty());
    CHECK(error_of(with(file, "\xFF\x02")).find("no marker found") != std::string::npos);
    CHECK(error_of(with(file, segment(0xEE, "Adobe"))).find("cut off") != std::string::npos);
    CHECK(error_of(with(file, segment(0xDB, std::string(10, '\0')))).find("quantization") != std::string::npos);
    CHECK(error_of(with(file, segment(0xC0, std::string("\x0C\0\x10\0\x18\x03", 6)))).find("12-bit") != std::string::npos);
    CHECK(error_of(with(file, segment(0xC0, std::string("\x08\0\x10\0\x18\x02", 6)))).find("2-layer") != std::string::npos);
    CHECK(error_of(with(file, segment(0xC0, std::string("\x08\0\x10\0\x18\x01\x01\x11\0", 9)))) != "");
}

TEST_CASE("a JPEG that declares too many pixels is rejected before they take memory") {
    std::string file = jpeg(flat(1, {9}), kWidth, kHeight, 1);
    const std::size_t frame = file.find("\xFF\xC0");
    file.replace(frame + 5, 4, big16(65'000) + big16(65'000));
    CHECK(error_of(file) == "photo has 65000 x 65000 pixels, but at most 256,000,000 are decoded; make it smaller first");
}
