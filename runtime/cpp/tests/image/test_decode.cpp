#include <sys/stat.h>
#include <unistd.h>

#include <thread>
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "files.hpp"

using namespace prtool;
using namespace prtool::test;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

std::string file_error(const std::string& path) {
    try {
        decode_file(path);
        return "";
    } catch (const Error& error) {
        CHECK(error.status() == Status::image);
        return error.what();
    }
}

}  // namespace

TEST_CASE("what is no image is rejected by name") {
    Status status = Status::ok;
    CHECK(error_of("", &status) == "photo is empty (0 bytes)");
    CHECK(status == Status::image);
    for (const char* text : {"x", "\xFF\xD8", "\x89PNG", "GIF89a", "hello, this is a text"}) {
        CHECK(error_of(text) == "photo is not an image of a known format (JPEG, PNG)");
    }
}

TEST_CASE("a file is read whole, whatever its size") {
    const std::filesystem::path path = std::filesystem::temp_directory_path() / "prtool-image-test.png";
    const Bytes pixels = noise(3 * 700 * 600);  // 1.26 MB, incompressible: above the size of one read
    std::ofstream(path, std::ios::binary) << encoded({700, 600, 8, 2, pixels});
    CHECK(decode_file(path.string()).pixels == pixels);
    std::ofstream(path, std::ios::binary).close();
    CHECK(file_error(path.string()) == path.string() + " is empty (0 bytes)");
    std::filesystem::remove(path);
    CHECK(file_error(path.string()) == path.string() + " cannot be opened: No such file or directory");
    CHECK(file_error("/") == "/ cannot be opened: Is a directory");
    CHECK(file_error("/dev/zero") == "/dev/zero cannot be opened: it is a device and not a regular file");
}

TEST_CASE("a pipe is read to its end, and not waited for without a writer") {
    const std::filesystem::path path = std::filesystem::temp_directory_path() / ("prtool-image-pipe-" + std::to_string(getpid()));
    REQUIRE(mkfifo(path.c_str(), 0600) == 0);
    CHECK(file_error(path.string()) == path.string() + " is empty (0 bytes)");
    const Bytes pixels = noise(3 * 200 * 200);
    std::thread writer([&] { std::ofstream(path, std::ios::binary) << encoded({200, 200, 8, 2, pixels}); });
    CHECK(decode_file(path.string()).pixels == pixels);
    writer.join();
    std::filesystem::remove(path);
}

TEST_CASE("a bomb is rejected before its pixels take memory") {
    CHECK(error_of(encoded({1, 1, 8, 2, {1, 2, 3}})).empty());
    const std::string header = "\x89PNG\r\n\x1A\n" + chunk("IHDR", big32(65'535) + big32(65'535) + std::string("\x08\x02\0\0\0", 5));
    CHECK(error_of(header + chunk("IDAT", "")) ==
          "photo has 65535 x 65535 pixels, but at most 256,000,000 are decoded; make it smaller first");
    // A strip of 1 x 200,000,000: Pillow's rows take 8 bytes more, each.
    const std::string strip = "\x89PNG\r\n\x1A\n" + chunk("IHDR", big32(1) + big32(200'000'000) + std::string("\x08\x02\0\0\0", 5));
    CHECK(contains(error_of(strip + chunk("IDAT", "")), "which take 2,400,000,000 bytes"));
    const std::string most = "\x89PNG\r\n\x1A\n" + chunk("IHDR", std::string(8, '\xFF') + std::string("\x08\x02\0\0\0", 5));
    CHECK(error_of(most + chunk("IDAT", "")) != "");
}

// On which side of the upright image the first stored row and column lie, for each orientation, as EXIF defines it.
struct Sides {
    const char* row;
    const char* column;
};
constexpr Sides kSides[] = {{"top", "left"}, {"top", "right"}, {"bottom", "right"}, {"bottom", "left"},
                            {"left", "top"}, {"right", "top"}, {"right", "bottom"}, {"left", "bottom"}};

TEST_CASE("every orientation is undone") {
    constexpr int width = 70, height = 65;  // more than a block of the turning
    Png png{width, height, 8, 2, noise(3 * width * height)};
    for (int orientation = 1; orientation <= 8; ++orientation) {
        png.before = chunk("eXIf", exif(orientation).substr(6));
        const Rgb image = decoded(encoded(png));
        const std::string row = kSides[orientation - 1].row, column = kSides[orientation - 1].column;
        const bool turned = row == "left" || row == "right";
        REQUIRE(image.width == (turned ? height : width));
        REQUIRE(image.height == (turned ? width : height));
        bool equal = true;
        for (int y = 0; y < height; ++y) {
            for (int x = 0; x < width; ++x) {
                const int along_row = column == "left" || column == "top" ? x : width - 1 - x;
                const int along_column = row == "top" || row == "left" ? y : height - 1 - y;
                const std::int64_t at = turned ? along_row * image.width + along_column : along_column * image.width + along_row;
                equal = equal && std::equal(&image.pixels[3 * at], &image.pixels[3 * at] + 3, &png.samples[3 * (y * width + x)]);
            }
        }
        CHECK_MESSAGE(equal, "orientation " << orientation);
    }
}
