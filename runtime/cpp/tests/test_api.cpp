// The public headers on a bundle: what they give, and what they reject.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>

#include "sample.hpp"

namespace {

using prtool::Encoder;
using prtool::Failure;
using prtool::Keep;

prtool_options options_of(const char* mode) {
    prtool_options options = prtool_options_default();
    options.mode = mode;
    options.spinning = 0;
    return options;
}

prtool_status status_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const Failure& failure) {
        return failure.status();
    }
    return PRTOOL_OK;
}

#if !defined(PRTOOL_UNDER_SANITIZER)
std::size_t address_space() {
    std::size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}
#endif

float largest_difference(const std::vector<float>& first, const std::vector<float>& second) {
    REQUIRE(first.size() == second.size());
    float most = 0.0F;
    for (std::size_t place = 0; place < first.size(); ++place) most = std::max(most, std::abs(first[place] - second[place]));
    return most;
}

}  // namespace

TEST_CASE("fused and split agree where patches are ranked, and rows have length 1") {
    const Encoder fused(bundle_path(), options_of("fused"));
    const prtool_info& info = fused.info();
    std::optional<Encoder> split;
    CHECK(status_of([&split] { split.emplace(bundle_path(), options_of("split")); }) == (ranks(info) ? PRTOOL_OK : PRTOOL_CONFIG));
    if (!split) CHECK(std::string(prtool_last_error()).find("'" + std::string(info.method) + "' runs in the modes fused, full") != std::string::npos);
    for (const std::int64_t batch : {1, 3}) {
        const std::vector<float> pixels = noise(info, batch, 5);
        for (const Keep& keep : {Keep(), Keep::ratio(1.0), Keep::count(middle_keep(info)), Keep::count(info.min_keep), Keep::count(info.max_keep)}) {
            const std::vector<float> found = fused.encode_pixels(pixels, keep);
            if (split) CHECK(largest_difference(found, split->encode_pixels(pixels, keep)) < 2e-6F);
            for (auto row = found.begin(); row != found.end(); row += info.embed_dim) {
                CHECK(std::inner_product(row, row + info.embed_dim, row, 0.0) == doctest::Approx(1.0).epsilon(1e-5));
            }
        }
    }
}

TEST_CASE("a ratio, a count and a list are one thing") {
    const Encoder encoder(bundle_path(), options_of("fused"));
    const prtool_info& info = encoder.info();
    const std::vector<float> pixels = noise(info, 2, 7);
    const std::int64_t count = middle_keep(info);
    const double ratio = static_cast<double>(count) / static_cast<double>(info.patches);
    CHECK(encoder.encode_pixels(pixels, Keep::ratio(ratio)) == encoder.encode_pixels(pixels, Keep::count(count)));
    CHECK(encoder.encode_pixels(pixels) == encoder.encode_pixels(pixels, Keep::count(info.default_keep)));
    const std::vector<std::int64_t> all(static_cast<std::size_t>(info.locations), info.patches);
    CHECK(encoder.encode_pixels(pixels, Keep::counts(all)) == encoder.encode_pixels(pixels, Keep::ratio(1.0)));
    CHECK(status_of([&] { encoder.encode_pixels(pixels, Keep::ratio(0.0)); }) == PRTOOL_KEEP);
    CHECK(status_of([&] { encoder.encode_pixels(pixels, Keep::ratio(std::nan(""))); }) == PRTOOL_KEEP);
    CHECK(status_of([&] { encoder.encode_pixels(pixels, Keep::count(0)); }) == PRTOOL_KEEP);
    CHECK(status_of([&] { encoder.encode_pixels(pixels, Keep::count(info.patches + 1)); }) == PRTOOL_KEEP);
    CHECK(status_of([&] { encoder.encode_pixels(pixels, Keep::counts({1, 2, 3, 4, 5, 6})); }) == PRTOOL_KEEP);
    if (info.min_keep > 1) CHECK(status_of([&] { encoder.encode_pixels(pixels, Keep::count(info.min_keep - 1)); }) == PRTOOL_KEEP);
}

TEST_CASE("images of any size and stride are what preparing and encoding them at the size of the mode gives") {
    for (const char* mode : {"fused", "full"}) {
        const Encoder encoder(bundle_path(), options_of(mode));
        std::vector<std::uint8_t> rgb(40 * 130);
        for (std::size_t place = 0; place < rgb.size(); ++place) rgb[place] = static_cast<std::uint8_t>(place * 37 % 251);
        const prtool_rgb wide{rgb.data(), 43, 40, 130};  // one byte of padding a row
        const prtool_rgb tight{rgb.data(), 31, 55, 0};
        std::vector<float> pixels;
        for (const prtool_rgb& image : {wide, tight}) {
            std::vector<float> one(static_cast<std::size_t>(3 * encoder.info().image_height * encoder.info().image_width));
            REQUIRE(prtool_prepare_rgb(encoder.handle(), image, one.data()) == PRTOOL_OK);
            pixels.insert(pixels.end(), one.begin(), one.end());
        }
        CHECK(encoder.encode_rgb({wide, tight}) == encoder.encode_pixels(pixels));
        for (const prtool_rgb& image : {prtool_rgb{nullptr, 1, 1, 0}, prtool_rgb{rgb.data(), 0, 5, 0}, prtool_rgb{rgb.data(), 5, -1, 0},
                                        prtool_rgb{rgb.data(), std::numeric_limits<std::int64_t>::max(), 2, 0}, prtool_rgb{rgb.data(), 9, 9, 26}}) {
            CHECK(status_of([&] { encoder.encode_rgb({image}); }) != PRTOOL_OK);
        }
    }
}

TEST_CASE("what is wrong is named, and nothing is written") {
    const Encoder encoder(bundle_path(), options_of("fused"));
    const prtool_info& info = encoder.info();
    std::vector<float> pixels = noise(info, 2, 9);
    std::vector<float> out(static_cast<std::size_t>(2 * info.embed_dim), 7.0F);
    const std::vector<float> before = out;
    CHECK(prtool_encode_pixels(encoder.handle(), pixels.data(), 2, prtool_keep_count(info.patches + 1), out.data()) == PRTOOL_KEEP);
    CHECK(prtool_encode_pixels(encoder.handle(), pixels.data(), 0, prtool_keep_default(), out.data()) == PRTOOL_SHAPE);
    CHECK(prtool_encode_pixels(encoder.handle(), pixels.data(), std::numeric_limits<std::int64_t>::max(), prtool_keep_default(), out.data()) == PRTOOL_SHAPE);
    CHECK(prtool_encode_pixels(nullptr, pixels.data(), 1, prtool_keep_default(), out.data()) == PRTOOL_CONFIG);
    pixels[5] = std::nanf("");
    CHECK(prtool_encode_pixels(encoder.handle(), pixels.data(), 2, prtool_keep_default(), out.data()) == PRTOOL_ENGINE);
    CHECK(std::string(prtool_last_error()).find("not finite") != std::string::npos);
    const char* missing[] = {"/nowhere.jpg"};
    CHECK(prtool_encode_files(encoder.handle(), missing, 1, prtool_keep_default(), out.data()) == PRTOOL_IMAGE);
    CHECK(std::string(prtool_last_error()).find("/nowhere.jpg") != std::string::npos);
    const std::uint8_t junk[] = {1, 2, 3, 4};
    const prtool_bytes images[] = {{junk, sizeof(junk)}, {nullptr, 0}};
    CHECK(prtool_encode_bytes(encoder.handle(), images, 1, prtool_keep_default(), out.data()) == PRTOOL_IMAGE);
    CHECK(prtool_encode_bytes(encoder.handle(), images + 1, 1, prtool_keep_default(), out.data()) == PRTOOL_IMAGE);
    CHECK(out == before);
    for (const char* mode : {"fast", ""}) CHECK(status_of([&] { Encoder(bundle_path(), options_of(mode)); }) == PRTOOL_CONFIG);
    prtool_options other = options_of("fused");
    other.engine = "onnx";
    CHECK(status_of([&] { Encoder(bundle_path(), other); }) == PRTOOL_CONFIG);
    other = options_of("fused");
    other.precision = "fp8";
    CHECK(status_of([&] { Encoder(bundle_path(), other); }) == PRTOOL_CONFIG);
    other = options_of("fused");
    other.threads = -1;
    CHECK(status_of([&] { Encoder(bundle_path(), other); }) == PRTOOL_CONFIG);
}

TEST_CASE("mode full drops nothing") {
    const Encoder encoder(bundle_path(), options_of("full"));
    const std::vector<float> pixels = noise(encoder.info(), 2, 3);
    CHECK(encoder.encode_pixels(pixels) == encoder.encode_pixels(pixels, Keep::ratio(1.0)));
    const bool some = encoder.info().min_keep < encoder.info().patches;
    CHECK(status_of([&] { encoder.encode_pixels(pixels, Keep::count(encoder.info().min_keep)); }) == (some ? PRTOOL_KEEP : PRTOOL_OK));
}

TEST_CASE("classes, where the bundle has some") {
    const Encoder encoder(bundle_path(), options_of("fused"));
    const std::vector<float> found = encoder.encode_pixels(noise(encoder.info(), 3, 1));
    if (encoder.info().classes == 0) {
        CHECK(status_of([&] { encoder.classify(found, 1); }) == PRTOOL_BUNDLE);
        return;
    }
    const auto classes = encoder.classify(found, encoder.info().classes);
    REQUIRE(classes.size() == 3);
    for (const auto& row : classes) {
        float sum = 0.0F;
        for (std::size_t place = 0; place < row.size(); ++place) {
            sum += row[place].probability;
            CHECK(row[place].name == prtool_class_name(encoder.handle(), row[place].label));
            if (place > 0) CHECK(row[place].probability <= row[place - 1].probability);
        }
        CHECK(sum == doctest::Approx(1.0).epsilon(1e-5));
    }
    CHECK(status_of([&] { encoder.classify(found, 0); }) == PRTOOL_CONFIG);
    const auto all = encoder.classify(found, encoder.info().classes), more = encoder.classify(found, encoder.info().classes + 7);
    REQUIRE(more.size() == all.size());
    for (std::size_t image = 0; image < all.size(); ++image) {
        REQUIRE(more[image].size() == static_cast<std::size_t>(encoder.info().classes));
        for (std::size_t place = 0; place < all[image].size(); ++place) CHECK(more[image][place].label == all[image][place].label);
    }
    CHECK(status_of([&] { encoder.classify(found, -1); }) == PRTOOL_CONFIG);
    std::vector<std::uint8_t> rgb(3 * 40 * 30, 77);
    const std::vector<prtool_rgb> images(2, {rgb.data(), 40, 30, 0});
    const std::int64_t count = middle_keep(encoder.info());
    const auto direct = encoder.classify_rgb(images, Keep::count(count), 2), indirect = encoder.classify(encoder.encode_rgb(images, Keep::count(count)), 2);
    REQUIRE(direct.size() == 2);
    CHECK(direct[1][1].label == indirect[1][1].label);
    std::int64_t labels[4];
    float shares[4];
    REQUIRE(prtool_classify_rgb(encoder.handle(), images.data(), 2, prtool_keep_count(count), 2, labels, shares) == PRTOOL_OK);
    CHECK((labels[3] == direct[1][1].label && shares[3] == direct[1][1].probability));
    const char* missing[] = {"/nowhere.jpg"};
    CHECK(prtool_classify_files(encoder.handle(), missing, 1, prtool_keep_default(), 1, labels, shares) == PRTOOL_IMAGE);
    CHECK(prtool_classify_bytes(encoder.handle(), nullptr, 1, prtool_keep_default(), 1, labels, shares) == PRTOOL_CONFIG);
    CHECK(prtool_class_name(encoder.handle(), -1) == nullptr);
    CHECK(prtool_class_name(encoder.handle(), encoder.info().classes) == nullptr);
}

TEST_CASE("what was opened stays what it was, or the next part is an error") {
    namespace fs = std::filesystem;
    const fs::path copy = fs::temp_directory_path() / ("prtool-api-" + std::to_string(getpid()));
    fs::copy(bundle_path(), copy, fs::copy_options::recursive);
    const Encoder encoder(copy.string(), options_of("fused"));
    const std::vector<float> pixels = noise(encoder.info(), 1, 3), before = encoder.encode_pixels(pixels);
    if (encoder.info().classes > 0) {
        // Even by a file of the same bytes: another one lies there.
        fs::copy_file(copy / "classes.safetensors", copy / "other");
        fs::rename(copy / "other", copy / "classes.safetensors");
        CHECK(status_of([&] { encoder.classify(before, 1); }) == PRTOOL_BUNDLE);
        CHECK(std::string(prtool_last_error()).find("changed since it was opened") != std::string::npos);
    }
    CHECK(encoder.encode_pixels(pixels) == before);
    fs::remove_all(copy);
}

TEST_CASE("device pixels are rejected where the engine has no GPU") {
    const Encoder encoder(bundle_path(), options_of("fused"));
    const std::vector<float> pixels = noise(encoder.info(), 1, 3);
    std::vector<float> out(static_cast<std::size_t>(encoder.info().embed_dim), 7.0F);
    CHECK(prtool_encode_device_pixels(encoder.handle(), pixels.data(), 1, prtool_keep_default(), out.data(), nullptr) == PRTOOL_CONFIG);
    CHECK(std::string(prtool_last_error()).find("engine ort works in host memory") == 0);
    CHECK(out == std::vector<float>(out.size(), 7.0F));
    prtool_options options = options_of("fused");
    options.cuda_graphs = 1;
    CHECK(status_of([&] { Encoder(bundle_path(), options); }) == PRTOOL_CONFIG);
}

#if !defined(PRTOOL_UNDER_SANITIZER)
// A sanitizer reserves the address space that is limited here.
TEST_CASE("out of memory is a status, and the encoder serves on") {
    const Encoder encoder(bundle_path(), options_of("fused"));
    const std::vector<float> pixels = noise(encoder.info(), 1, 3);
    const std::vector<float> before = encoder.encode_pixels(pixels);
    constexpr std::int64_t many = std::int64_t{1} << 24;
    const std::uint8_t pixel[3] = {1, 2, 3};
    const std::vector<prtool_rgb> images(many, {pixel, 1, 1, 0});
    float out = 7.0F;
    rlimit limit{};
    REQUIRE(getrlimit(RLIMIT_AS, &limit) == 0);
    const rlimit little{address_space() + (std::size_t{64} << 20), limit.rlim_max};
    REQUIRE(setrlimit(RLIMIT_AS, &little) == 0);
    const prtool_status status = prtool_encode_rgb(encoder.handle(), images.data(), many, prtool_keep_default(), &out);
    setrlimit(RLIMIT_AS, &limit);
    CHECK(status == PRTOOL_MEMORY);
    CHECK(std::string(prtool_last_error()).find("out of memory") == 0);
    CHECK(out == 7.0F);
    CHECK(encoder.encode_pixels(pixels) == before);
}
#endif

TEST_CASE("options of another version") {
    prtool_options options = options_of("fused");
    options.verify = 0;
    options.struct_size = offsetof(prtool_options, cache);  // as an older header had them
    CHECK(status_of([&] { Encoder(bundle_path(), options); }) == PRTOOL_OK);
    for (const std::size_t size : {std::size_t{0}, std::size_t{4}, std::size_t{12}, sizeof(prtool_options) + 8}) {
        options.struct_size = static_cast<std::uint32_t>(size);
        CHECK(status_of([&] { Encoder(bundle_path(), options); }) == PRTOOL_CONFIG);
        CHECK(std::string(prtool_last_error()).find(std::to_string(size)) != std::string::npos);
    }
}
