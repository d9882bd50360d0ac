// TensorRT's shapes: which profiles a graph gets, which one a call belongs to, and their words; as tests/engines/test_trt_shapes.py.
#include <doctest/doctest.h>
#include <stdlib.h>

#include <filesystem>

#include "engines/trt/shapes.hpp"
#include "errors.hpp"

namespace {

using prtool::Error;
using prtool::Profile;
using prtool::ShapeRange;
using prtool::TensorSpec;
namespace trt = prtool::trt;

const TensorSpec kPixels{"pixels", "float32", {"batch", 3, 32, 32}};
const TensorSpec kTokens{"tokens", "float32", {"batch", "tokens", 12}};
const TensorSpec kCounts{"k", "int64", {1}};
const TensorSpec kIds{"tokens", "int64", {"batch", 7}};

Profile profile(ShapeRange batch = {1, 8, 32}, ShapeRange k = {2, 10, 16}) {
    return {{"batch", batch}, {"tokens", {k.least + 1, k.usual + 1, k.most + 1}}, {"k", k}};
}

std::string text_of(const std::vector<TensorSpec>& inputs, const std::vector<Profile>& profiles) {
    return trt::profiles_text(trt::graph_profiles(inputs, profiles));
}

std::string refusal(const std::vector<Profile>& profiles, const trt::Sizes& sizes) {
    try {
        trt::choose_profile(profiles, sizes, "g.onnx", "trt");
    } catch (const Error& error) {
        CHECK(error.status() == prtool::Status::shape);
        return error.what();
    }
    return "";
}

bool starts(const std::string& text, const std::string& start) {
    return text.compare(0, start.size(), start) == 0;
}

}  // namespace

TEST_CASE("a graph takes the ranges that it has") {
    CHECK(text_of({kPixels, kCounts}, {profile()}) == "batch 1:8:32, k 2:10:16");
    CHECK(text_of({kTokens}, {profile()}) == "batch 1:8:32, tokens 3:11:17");
    CHECK(text_of({kIds}, {profile()}) == "batch 1:8:32");
    const std::vector<Profile> narrow = {profile({1, 8, 32}, {5, 5, 5}), profile({1, 8, 32}, {9, 9, 9})};
    CHECK(text_of({kPixels}, narrow) == "batch 1:8:32");
    CHECK(text_of({kPixels, kCounts}, narrow) == "batch 1:8:32, k 5:5:5 | batch 1:8:32, k 9:9:9");
    CHECK_THROWS_AS(trt::graph_profiles({kTokens}, {{{"batch", {1, 1, 1}}}}), Error);
}

TEST_CASE("profiles and options survive as text") {
    for (const std::string text : {"batch 1:8:32, k 2:10:16", "batch 1:8:32 | batch 1:1:1, k 5:5:5", ""}) {
        CHECK(trt::profiles_text(trt::parse_profiles(text)) == text);
    }
    for (const std::string text : {"batch", "batch 1:2", "batch 0:1:1", "batch 2:1:3", "batch 1:2:3:4", "batch a:b:c", "batch 1:8:32 | k"}) {
        CHECK_THROWS_AS(trt::parse_profiles(text), Error);
    }
    const std::string usual = "recipe=1 level=3 workspace_mib=0 timing_cache=1 version_compatible=0 hardware_compatible=0 strip_weights=0";
    CHECK(trt::builder_text({}) == usual);
    for (const std::string& text : {usual, std::string("recipe=1 level=5 workspace_mib=2048 timing_cache=0 version_compatible=1 hardware_compatible=1 "
                                                       "strip_weights=1")}) {
        CHECK(trt::builder_text(trt::parse_builder(text)) == text);
    }
    for (const std::string& text : {usual + " more=1", std::string("recipe=1 level=3"), std::string("recipe=1 level=x"), "recipe=2" + usual.substr(8)}) {
        CHECK_THROWS_AS(trt::parse_builder(text), Error);
    }
}

TEST_CASE("sizes of a call") {
    const float* const floats = nullptr;
    const std::int64_t counts[] = {9};
    const auto sizes = trt::call_sizes({kPixels, kCounts}, {prtool::input_of("k", counts, {1}), prtool::input_of("pixels", floats, {3, 3, 32, 32})}, "g.onnx");
    CHECK(sizes == trt::Sizes{{"batch", {3}}, {"k", {9}}});
    CHECK(trt::call_sizes({kTokens}, {prtool::input_of("tokens", floats, {2, 11, 12})}, "g.onnx") == trt::Sizes{{"batch", {2}}, {"tokens", {11}}});
    CHECK_THROWS_AS(trt::call_sizes({kTokens}, {}, "g.onnx"), Error);
    CHECK_THROWS_AS(trt::call_sizes({kTokens}, {prtool::input_of("tokens", floats, {2, 11})}, "g.onnx"), Error);
}

TEST_CASE("the chosen profile is the narrowest, then the one whose usual sizes are nearest") {
    const std::vector<Profile> profiles = {profile(), profile({1, 8, 32}, {9, 9, 9}), profile({1, 1, 1}), profile({1, 1, 1}, {9, 9, 9})};
    const auto chosen = [&](std::int64_t batch, std::int64_t k) { return trt::choose_profile(profiles, {{"batch", {batch}}, {"k", {k}}}, "g.onnx", "trt"); };
    CHECK(chosen(1, 9) == 3);
    CHECK(chosen(2, 9) == 1);
    CHECK(chosen(1, 2) == 2);
    CHECK(chosen(32, 16) == 0);
    const std::vector<Profile> wide = {profile({1, 1, 32}), profile({1, 30, 32})};
    for (const auto& [batch, place] : {std::pair<std::int64_t, std::size_t>{1, 0}, {2, 0}, {20, 1}, {32, 1}}) {
        CHECK(trt::choose_profile(wide, {{"batch", {batch}}}, "g.onnx", "trt") == place);
    }
    // Each value of a shape must fit.
    const std::vector<Profile> several = {profile({1, 8, 32}, {2, 4, 8}), profile({1, 8, 32}, {2, 8, 16})};
    CHECK(trt::choose_profile(several, {{"k", {8, 4}}}, "g.onnx", "trt") == 0);
    CHECK(trt::choose_profile(several, {{"k", {12, 4}}}, "g.onnx", "trt") == 1);
}

TEST_CASE("a call outside names value, range and command") {
    CHECK(refusal({profile()}, {{"batch", {64}}}) ==
          "batch = 64, but g.onnx was built for 1 to 32; build it again with 'prtool build --engine trt --batch 1:8:64'");
    CHECK(refusal({profile({4, 8, 8})}, {{"batch", {2}}}).find("4 to 8; build it again with 'prtool build --engine trt --batch 2:8:8'") != std::string::npos);
    CHECK(starts(refusal({profile()}, {{"k", {17}}}), "k = 17, but g.onnx was built for 2 to 16; the bundle allows no other"));
    CHECK(starts(refusal({profile()}, {{"k", {16, 1}}}), "k = 1, "));
    const std::string counts = refusal({profile({1, 8, 32}, {5, 5, 5}), profile({1, 8, 32}, {9, 9, 9})}, {{"k", {7}}});
    CHECK(starts(counts, "k = 7, but g.onnx was built for 5, 9; "));
    CHECK(counts.find("--keep 5,7,9'") != std::string::npos);
    CHECK(refusal({profile({1, 8, 32}, {5, 5, 5})}, {{"tokens", {9}}}).find("behind these tokens to --keep") != std::string::npos);
    const std::string none = refusal({profile(), profile({64, 64, 64}, {5, 5, 5})}, {{"batch", {64}}, {"k", {6}}});
    CHECK(none.find("no single profile of these holds batch = 64, k = 6") != std::string::npos);
}

TEST_CASE("what was built or used last is taken, whatever its ranges") {
    char pattern[] = "/tmp/prtool-shapes-XXXXXX";
    const std::filesystem::path folder = mkdtemp(pattern);
    const trt::EngineCache cache(folder.string());
    const trt::Recipe asked{{profile()}, {}};
    trt::EngineKey key;
    key.onnx_sha256 = std::string(64, '1');
    key.profiles = trt::profiles_text(asked.profiles);
    key.builder = trt::builder_text(asked.options);
    CHECK(trt::profiles_text(trt::as_built_last(cache, key, asked).profiles) == key.profiles);
    const auto keep = [&](const std::string& profiles, const std::string& builder) {
        trt::EngineKey other = key;
        other.profiles = profiles;
        other.builder = builder;
        cache.obtain(other, [] { return std::string("plan"); }, "");
    };
    keep("batch 1:1:64 | batch 2:2:2", "recipe=1 level=5 workspace_mib=0 timing_cache=1 version_compatible=0 hardware_compatible=0 strip_weights=0");
    CHECK(trt::profiles_text(trt::as_built_last(cache, key, asked).profiles) == "batch 1:1:64 | batch 2:2:2");
    CHECK(trt::as_built_last(cache, key, asked).options.level == 5);
    // One of another recipe is none that this version makes.
    keep("batch 3:3:3", "recipe=2 level=3");
    CHECK(trt::profiles_text(trt::as_built_last(cache, key, asked).profiles) == key.profiles);
    std::filesystem::remove_all(folder);
}
