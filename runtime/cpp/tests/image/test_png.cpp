#include <doctest/doctest.h>

#include <algorithm>

#include "files.hpp"

using namespace prtool;
using namespace prtool::test;

namespace {

Bytes grey(std::initializer_list<int> values) {
    Bytes pixels;
    for (const int value : values) pixels.insert(pixels.end(), 3, static_cast<std::uint8_t>(value));
    return pixels;
}

Bytes read(const Png& png) { return decoded(encoded(png)).pixels; }

}  // namespace

TEST_CASE("greys of every depth") {
    CHECK(read({9, 1, 1, 0, {0b10110001, 0b10000000}}) == grey({255, 0, 255, 255, 0, 0, 0, 255, 255}));
    CHECK(read({5, 1, 2, 0, {0b00011011, 0b10000000}}) == grey({0, 85, 170, 255, 170}));
    CHECK(read({3, 1, 4, 0, {0x1F, 0xA0}}) == grey({17, 255, 170}));
    CHECK(read({2, 1, 8, 0, {7, 200}}) == grey({7, 200}));
    CHECK(read({2, 1, 16, 0, {7, 255, 200, 0}}) == grey({7, 200}));
}

TEST_CASE("colours keep their high bytes, and alpha is dropped") {
    CHECK(read({1, 2, 8, 2, {1, 2, 3, 4, 5, 6}}) == Bytes{1, 2, 3, 4, 5, 6});
    CHECK(read({1, 1, 16, 2, {1, 99, 2, 99, 3, 99}}) == Bytes{1, 2, 3});
    CHECK(read({2, 1, 8, 6, {1, 2, 3, 0, 4, 5, 6, 128}}) == Bytes{1, 2, 3, 4, 5, 6});
    CHECK(read({1, 1, 16, 6, {1, 99, 2, 99, 3, 99, 0, 0}}) == Bytes{1, 2, 3});
    CHECK(read({2, 1, 8, 4, {9, 0, 8, 1}}) == grey({9, 8}));
    CHECK(read({1, 1, 16, 4, {9, 99, 0, 1}}) == grey({9}));
}

TEST_CASE("a palette gives its colours, and black beyond its end") {
    Png png{4, 1, 2, 3, {0b00011011}};
    png.before = chunk("PLTE", "abcdefghi");
    CHECK(read(png) == Bytes{'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 0, 0, 0});
    png.before += chunk("tRNS", std::string("\0\xFF", 2));
    CHECK(read(png) == Bytes{'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 0, 0, 0});
    png.before = chunk("PLTE", std::string(3 * 257, 'x'));
    CHECK(error_of(encoded(png)) != "");
    png.before = "";
    CHECK(error_of(encoded(png)) != "");
}

TEST_CASE("filters are undone") {
    // Three pixels a row; each filter on the same bytes, after a row without one.
    const Bytes first{10, 20, 30, 40, 50, 60, 70, 80, 90}, second{1, 2, 3, 4, 5, 6, 7, 8, 9};
    const auto second_row = [&](int filter) {
        Png png{3, 2, 8, 2, first};
        png.samples.insert(png.samples.end(), second.begin(), second.end());
        png.filter = filter;
        const Bytes pixels = read(png);
        return Bytes(pixels.begin() + 9, pixels.end());
    };
    CHECK(second_row(0) == second);
    CHECK(second_row(1) == Bytes{1, 2, 3, 5, 7, 9, 12, 15, 18});
    CHECK(second_row(2) == Bytes{11, 22, 33, 44, 55, 66, 77, 88, 99});
    // The first row was filtered too: averages, 10 20 30, 45 60 75, 92 110 127; then half of left and up.
    CHECK(second_row(3) == Bytes{6, 12, 18, 29, 41, 52, 67, 83, 98});
    // Paeth of the first row is "left": 10 20 30, 50 70 90, 120 150 180.
    CHECK(second_row(4) == Bytes{11, 22, 33, 54, 75, 96, 127, 158, 189});
    CHECK(error_of(encoded([&] {
              Png png{3, 1, 8, 2, first};
              png.filter = 5;
              return png;
          }())) != "");
}

TEST_CASE("an interlaced image is the same image") {
    for (const unsigned width : {1U, 2U, 5U, 8U, 13U}) {
        for (const unsigned height : {1U, 3U, 8U, 11U}) {
            Png png{width, height, 8, 2, {}};
            for (unsigned i = 0; i < 3 * width * height; ++i) png.samples.push_back(static_cast<std::uint8_t>(i * 7));
            const Bytes plain = read(png);
            constexpr unsigned left[] = {0, 4, 0, 2, 0, 1, 0}, top[] = {0, 0, 4, 0, 2, 0, 1};
            constexpr unsigned across[] = {8, 8, 4, 4, 2, 2, 1}, down[] = {8, 8, 8, 4, 4, 2, 2};
            png.samples.clear();
            png.interlaced = true;
            for (int pass = 0; pass < 7; ++pass) {
                for (unsigned y = top[pass]; y < height; y += down[pass]) {
                    for (unsigned x = left[pass]; x < width; x += across[pass]) {
                        png.samples.insert(png.samples.end(), &plain[3 * (y * width + x)], &plain[3 * (y * width + x)] + 3);
                    }
                }
            }
            CHECK_MESSAGE(read(png) == plain, width << " x " << height);
        }
    }
}

TEST_CASE("of an animation the first frame is read") {
    const std::string frame = big32(2) + big32(1) + big32(0) + big32(0) + std::string(6, '\0');
    Png png{2, 1, 8, 0, {5, 6}};
    png.before = chunk("acTL", big32(2) + big32(0)) + chunk("fcTL", big32(0) + frame);
    png.after = chunk("fcTL", big32(1) + frame) + chunk("fdAT", big32(2) + "anything");
    CHECK(read(png) == grey({5, 6}));
}

TEST_CASE("a damaged PNG is rejected") {
    const std::string file = encoded({40, 40, 8, 2, noise(4800)});
    const std::string reason = "photo is damaged, truncated or unsupported:";
    for (std::size_t size = 8; size + 17 < file.size(); size += 31) CHECK(error_of(file.substr(0, size)).substr(0, 43) == reason);
    CHECK(error_of(file.substr(0, file.size() - 12)).empty());  // Pillow does not miss the last chunk either
    for (const std::size_t place : {19, 900}) {  // the width; a pixel: checksums cover both
        std::string changed = file;
        changed[place] = static_cast<char>(changed[place] ^ 0x55);
        CHECK(error_of(changed).substr(0, 43) == reason);
    }
}

TEST_CASE("texts and profiles are unpacked within bounds") {
    Png png{1, 1, 8, 0, {5}};
    for (const char* name : {"zTXt", "iCCP"}) {
        png.before = chunk(name, std::string("key\0\1x", 6));  // an unknown compression: passed over
        CHECK(read(png) == grey({5}));
        png.before = chunk(name, std::string("key\0\0", 5) + packed(std::string(1 << 20, 'x')));
        CHECK(read(png) == grey({5}));
        png.before = chunk(name, std::string("key\0\0", 5) + packed(std::string(100 << 20, 'x')));
        CHECK(error_of(encoded(png)) != "");
    }
    png.before.clear();
    for (int copy = 0; copy < 3; ++copy) png.before += chunk("zTXt", std::string("key\0\0", 5) + packed(std::string(30 << 20, 'x')));
    CHECK(error_of(encoded(png)) != "");  // together they are too large
}
