// TensorRT's shapes: which profile a call belongs to; as tests/engines/test_trt_shapes.py.
#include <doctest/doctest.h>

#include "engines/trt/shapes.hpp"
#include "errors.hpp"

namespace {

using prtool::Error;
using prtool::TensorSpec;
namespace trt = prtool::trt;
using trt::Profile;
using trt::ShapeRange;

const TensorSpec kPixels{"pixels", "float32", {"batch", 3, 32, 32}};
const TensorSpec kTokens{"tokens", "float32", {"batch", "tokens", 12}};
const TensorSpec kCounts{"k", "int64", {1}};

Profile profile(ShapeRange batch = {1, 8, 32}, ShapeRange k = {2, 10, 16}) {
    return {{"batch", batch}, {"tokens", {k.min + 1, k.opt + 1, k.max + 1}}, {"k", k}};
}

std::string rejection(const std::vector<Profile>& profiles, const trt::Sizes& sizes) {
    try {
        trt::choose_profile(profiles, sizes, "g.onnx", "prtool build --engine trt");
    } catch (const Error& error) {
        CHECK(error.status() == prtool::Status::shape);
        return error.what();
    }
    return "";
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("sizes of a call") {
    const float* const floats = nullptr;
    const std::int64_t counts[] = {9};
    const auto sizes = trt::call_sizes({kPixels, kCounts}, {prtool::input_of("k", counts, {1}), prtool::input_of("pixels", floats, {3, 3, 32, 32})}, "g.onnx");
    CHECK(sizes == trt::Sizes{{"batch", {3}}, {"k", {9}}});
    CHECK(trt::call_sizes({kTokens}, {prtool::input_of("tokens", floats, {2, 11, 12})}, "g.onnx") == trt::Sizes{{"batch", {2}}, {"tokens", {11}}});
    // A count of each location has a range of its own.
    const TensorSpec several{"k", "int64", {2}};
    const std::int64_t falling[] = {12, 9};
    CHECK(trt::call_sizes({several}, {prtool::input_of("k", falling, {2})}, "g.onnx") == trt::Sizes{{"k[1]", {12}}, {"k[2]", {9}}});
    CHECK_THROWS_AS(trt::call_sizes({kTokens}, {}, "g.onnx"), Error);
    CHECK_THROWS_AS(trt::call_sizes({kTokens}, {prtool::input_of("tokens", floats, {2, 11})}, "g.onnx"), Error);
}

TEST_CASE("the chosen profile is the narrowest, then the one whose optimal sizes are nearest") {
    const std::vector<Profile> profiles = {profile(), profile({1, 8, 32}, {9, 9, 9}), profile({1, 1, 1}), profile({1, 1, 1}, {9, 9, 9})};
    const auto chosen = [&](std::int64_t batch, std::int64_t k) { return trt::choose_profile(profiles, {{"batch", {batch}}, {"k", {k}}}, "g.onnx", "prtool build"); };
    CHECK(chosen(1, 9) == 3);
    CHECK(chosen(2, 9) == 1);
    CHECK(chosen(1, 2) == 2);
    CHECK(chosen(32, 16) == 0);
    const std::vector<Profile> wide = {profile({1, 1, 32}), profile({1, 30, 32})};
    for (const auto& [batch, place] : {std::pair<std::int64_t, std::size_t>{1, 0}, {2, 0}, {20, 1}, {32, 1}}) {
        CHECK(trt::choose_profile(wide, {{"batch", {batch}}}, "g.onnx", "prtool build") == place);
    }
    // Each value of a shape must fit.
    const std::vector<Profile> several = {profile({1, 8, 32}, {2, 4, 8}), profile({1, 8, 32}, {2, 8, 16})};
    CHECK(trt::choose_profile(several, {{"k", {8, 4}}}, "g.onnx", "prtool build") == 0);
    CHECK(trt::choose_profile(several, {{"k", {12, 4}}}, "g.onnx", "prtool build") == 1);
}

TEST_CASE("a call outside names value, what was built, and the command") {
    for (const auto& [sizes, said] : std::vector<std::pair<trt::Sizes, std::string>>{
             {{{"batch", {64}}}, "batch = 64"}, {{{"k", {17}}}, "k = 17"}, {{{"k", {16, 1}}}, "k = 1,"}, {{{"heads", {3}}}, "heads = 3"}}) {
        const std::string message = rejection({profile()}, sizes);
        CHECK(has(message, said));
        CHECK(has(message, "batch 1:8:32, k 2:10:16"));
        CHECK(has(message, "prtool build --engine trt"));
    }
    CHECK(has(rejection({profile(), profile({64, 64, 64}, {5, 5, 5})}, {{"batch", {64}}, {"k", {6}}}), "batch = 64, k = 6 together"));
}
