#include <doctest/doctest.h>

#include "files.hpp"
#include "image/prepare.hpp"

using namespace prtool;
using test::Bytes;
using test::noise;

namespace {

Preprocess plain(int height, int width) {
    Preprocess spec;
    spec.height = height;
    spec.width = width;
    spec.mean = {0, 0, 0};
    spec.std = {1.0 / 255, 1.0 / 255, 1.0 / 255};
    return spec;
}

std::vector<float> prepared(const Bytes& pixels, std::int64_t width, std::int64_t height, const Preprocess& spec) {
    std::vector<float> out(3 * static_cast<std::size_t>(spec.width) * static_cast<std::size_t>(spec.height), -1.0F);
    prepare({pixels.data(), width, height, 3 * width}, spec, out.data());
    return out;
}

std::string error_of(const RgbView& image, const Preprocess& spec) {
    try {
        prepare(image, spec, nullptr);
        return "";
    } catch (const Error& error) {
        CHECK(error.status() == Status::shape);
        return error.what();
    }
}

}  // namespace

TEST_CASE("channels come one after the other, normalised in float32") {
    Preprocess spec = plain(1, 2);
    spec.mean = {0.5, 0.25, 0.0};
    spec.std = {0.5, 0.25, 2.0};
    const std::vector<float> expected{-1.0F, 1.0F, -1.0F, 3.0F, 0.0F, 0.5F};
    CHECK(prepared({0, 0, 0, 255, 255, 255}, 2, 1, spec) == expected);
    spec.mean[0] = 0.48145466;
    spec.std[0] = 0.26862954;
    CHECK(prepared({7, 0, 0, 200, 0, 0}, 2, 1, spec)[1] == (200.0F / 255.0F - 0.48145466F) / 0.26862954F);
}

TEST_CASE("the three ways to the encoder's size") {
    Bytes pixels;  // three columns: dark, middle, bright
    for (int y = 0; y < 2; ++y) {
        for (const int value : {10, 100, 200}) pixels.insert(pixels.end(), 3, static_cast<std::uint8_t>(value));
    }
    Preprocess spec = plain(2, 2);
    spec.interpolation = Interpolation::nearest;
    spec.resize_mode = ResizeMode::shortest;  // stays 3 x 2, of which 2 columns are kept: half a column rounds to 0
    CHECK(prepared(pixels, 3, 2, spec)[0] == doctest::Approx(10));
    CHECK(prepared(pixels, 3, 2, spec)[1] == doctest::Approx(100));
    spec = plain(4, 3);
    spec.resize_mode = ResizeMode::longest;  // stays 3 x 2, with a row of fill above and below
    spec.fill = 50;
    const std::vector<float> padded = prepared(pixels, 3, 2, spec);
    CHECK(padded[0] == doctest::Approx(50));
    CHECK(padded[3] == doctest::Approx(10));
    CHECK(padded[8] == doctest::Approx(200));
    CHECK(padded[9] == doctest::Approx(50));
    spec = plain(1, 1);
    spec.interpolation = Interpolation::nearest;
    spec.resize_mode = ResizeMode::squash;
    CHECK(prepared(pixels, 3, 2, spec)[0] == doctest::Approx(100));
}

TEST_CASE("a margin of a pixel and a half is rounded to even, or down") {
    Bytes pixels;  // five columns, of which two are kept
    for (int y = 0; y < 2; ++y) {
        for (const int value : {0, 50, 100, 150, 200}) pixels.insert(pixels.end(), 3, static_cast<std::uint8_t>(value));
    }
    Preprocess spec = plain(2, 2);
    CHECK(prepared(pixels, 5, 2, spec)[0] == doctest::Approx(100));
    spec.crop_rounding = CropRounding::floor;
    CHECK(prepared(pixels, 5, 2, spec)[0] == doctest::Approx(50));
}

TEST_CASE("a resize to more than the crop leaves a margin on every side") {
    Bytes pixels;  // four columns and rows, of which the two in the middle are kept
    for (int y = 0; y < 4; ++y) {
        for (const int value : {0, 50, 100, 150}) pixels.insert(pixels.end(), 3, static_cast<std::uint8_t>(value));
    }
    Preprocess spec = plain(2, 2);
    spec.resize_ratio = 2.0;
    CHECK(prepared(pixels, 4, 4, spec)[0] == doctest::Approx(50));
    CHECK(prepared(pixels, 4, 4, spec)[1] == doctest::Approx(100));
}

TEST_CASE("images of one pixel or one line") {
    for (const ResizeMode mode : {ResizeMode::shortest, ResizeMode::longest, ResizeMode::squash}) {
        for (const Interpolation filter : {Interpolation::bicubic, Interpolation::bilinear, Interpolation::nearest}) {
            Preprocess spec = plain(32, 32);
            spec.resize_mode = mode;
            spec.interpolation = filter;
            spec.fill = 9;
            for (const auto& [width, height] : {std::pair{1, 1}, std::pair{1, 70'000}, std::pair{70'000, 1}}) {
                const Bytes pixels(static_cast<std::size_t>(3 * width * height), 9);
                CHECK(prepared(pixels, width, height, spec) == prepared({9, 9, 9}, 1, 1, spec));
            }
        }
    }
}

TEST_CASE("what cannot be prepared is rejected") {
    const Bytes pixels = noise(12);
    CHECK(error_of({pixels.data(), 0, 2, 6}, plain(2, 2)).find("0 x 2 pixels") != std::string::npos);
    CHECK(error_of({nullptr, 2, 2, 6}, plain(2, 2)).find("pointer") != std::string::npos);
    CHECK(error_of({pixels.data(), 2, 2, 5}, plain(2, 2)).find("stride = 5") != std::string::npos);
}
