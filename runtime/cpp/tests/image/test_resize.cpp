#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "files.hpp"
#include "image/kernels.hpp"
#include "image/resize.hpp"

using namespace prtool;
using test::Bytes;
using test::noise;

namespace {

RgbView view_of(const Bytes& pixels, std::int64_t width, std::int64_t height) {
    return {pixels.data(), width, height, 3 * width};
}

Box whole(std::int64_t width, std::int64_t height) { return {0, 0, static_cast<float>(width), static_cast<float>(height)}; }

Bytes resized(const RgbView& image, std::int64_t width, std::int64_t height, Interpolation filter) {
    Bytes out(static_cast<std::size_t>(3 * width * height));
    resize(image, {width, height, filter, whole(image.width, image.height), {0, 0, width, height}}, out.data(), 3 * width);
    return out;
}

// Weights as no image has them: all bits, so that sums wrap around.
Taps random_taps(std::mt19937& source, std::int64_t pixels, std::int32_t most) {
    Taps taps;
    taps.stride = (most + 3) / 4 * 4;
    for (std::int64_t i = 0; i < pixels; ++i) {
        taps.first.push_back(5 + static_cast<std::int32_t>(i));
        taps.count.push_back(1 + static_cast<std::int32_t>(source() % static_cast<unsigned>(most)));
        for (std::int64_t tap = 0; tap < taps.stride; ++tap) {
            taps.weights.push_back(tap < taps.count.back() ? static_cast<std::int32_t>(source()) >> source() % 16 : 0);
        }
        taps.end = std::max<std::int64_t>(taps.end, taps.first.back() + taps.count.back());
    }
    taps.begin = 5;
    return taps;
}

Bytes across(const Kernels& kernels, const Bytes& rows, const Taps& taps) {
    const auto in = static_cast<std::int64_t>(rows.size()) / kRowsAtOnce;
    Bytes out(static_cast<std::size_t>(kRowsAtOnce * 3 * taps.pixels()));
    RowGroup group;
    for (std::int64_t i = 0; i < kRowsAtOnce; ++i) {
        group.in[i] = rows.data() + i * in;
        group.out[i] = out.data() + i * 3 * taps.pixels();
    }
    kernels.across(group, taps);
    return out;
}

}  // namespace

TEST_CASE("AVX2 gives the same bits as the portable loops") {
    const Kernels* avx2 = avx2_kernels();
    if (avx2 == nullptr) {
        MESSAGE("this processor has no AVX2: not tested");
        return;
    }
    std::mt19937 source(1);
    for (const std::int64_t pixels : {1, 2, 3, 7, 40}) {
        for (const std::int32_t most : {1, 2, 3, 4, 5, 9, 64}) {
            const Taps taps = random_taps(source, pixels, most);
            // Exactly as many bytes as may be read, for the address sanitizer to see.
            const Bytes rows = noise(static_cast<std::size_t>(kRowsAtOnce * 3 * (taps.end - taps.begin)));
            CHECK(across(*avx2, rows, taps) == across(portable_kernels(), rows, taps));
        }
    }
    for (const std::int64_t bytes : {1, 31, 32, 33, 64, 200}) {
        for (const std::int32_t count : {1, 2, 3, 8, 33}) {
            const Taps taps = random_taps(source, 1, count);
            const Bytes rows = noise(static_cast<std::size_t>(bytes * count));
            Bytes first(static_cast<std::size_t>(bytes)), second = first;
            const RowStack stack{rows.data(), bytes, taps.weights_of(0), count};
            avx2->down(stack, bytes, first.data());
            portable_kernels().down(stack, bytes, second.data());
            CHECK(first == second);
        }
    }
}

TEST_CASE("a window is a part of the whole") {
    const Bytes pixels = noise(3 * 90 * 170);
    for (const auto& [width, height] : {std::pair{90, 170}, std::pair{170, 90}}) {
        for (const Interpolation filter : {Interpolation::bicubic, Interpolation::bilinear, Interpolation::nearest}) {
            const RgbView image = view_of(pixels, width, height);
            const Bytes all = resized(image, 40, 31, filter);
            Bytes part(3 * 11 * 9);
            resize(image, {40, 31, filter, whole(width, height), {7, 20, 11, 9}}, part.data(), 33);
            bool equal = true;
            for (int y = 0; y < 9; ++y) equal = equal && std::equal(&part[33 * y], &part[33 * y] + 33, &all[3 * ((20 + y) * 40 + 7)]);
            CHECK(equal);
        }
    }
}

TEST_CASE("one colour stays one colour, at any size") {
    for (const auto& [width, height] : {std::pair{1, 1}, std::pair{1, 5000}, std::pair{5000, 1}, std::pair{33, 20}}) {
        const Bytes pixels(static_cast<std::size_t>(3 * width * height), 201);
        for (const Interpolation filter : {Interpolation::bicubic, Interpolation::bilinear, Interpolation::nearest}) {
            CHECK(resized(view_of(pixels, width, height), 24, 17, filter) == Bytes(3 * 24 * 17, 201));
        }
    }
}

TEST_CASE("a resize to the same size changes nothing") {
    const Bytes pixels = noise(3 * 50 * 40);
    for (const Interpolation filter : {Interpolation::bicubic, Interpolation::bilinear, Interpolation::nearest}) {
        CHECK(resized(view_of(pixels, 50, 40), 50, 40, filter) == pixels);
    }
}

TEST_CASE("known values") {
    // Bilinear at half the size weighs 1, 3, 3, 1 eighths, and at the edges 3, 3, 1 sevenths.
    const Bytes pixels{0, 0, 0, 80, 80, 80, 160, 160, 160, 240, 240, 240};
    CHECK(resized(view_of(pixels, 4, 1), 2, 1, Interpolation::bilinear) == Bytes{57, 57, 57, 183, 183, 183});
    CHECK(resized(view_of(pixels, 4, 1), 2, 1, Interpolation::nearest) == Bytes{80, 80, 80, 240, 240, 240});
}

TEST_CASE("only the rows' own bytes are read") {
    Bytes pixels = noise(50 * 20);  // 15 pixels a row, and 5 bytes that do not belong to it
    const RgbView image{pixels.data(), 15, 20, 50};
    Bytes out(3 * 8 * 8);
    const Scaling scaling{8, 8, Interpolation::bicubic, whole(15, 20), {0, 0, 8, 8}};
    resize(image, scaling, out.data(), 24);
    const Bytes before = out;
    for (int y = 0; y < 20; ++y) std::fill_n(&pixels[50 * y + 45], 5, std::uint8_t{0});
    resize(image, scaling, out.data(), 24);
    CHECK(out == before);
}
