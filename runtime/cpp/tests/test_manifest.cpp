// Manifests: what is read, what each damage is called, and which patches stay.
#include <doctest/doctest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "manifest.hpp"

namespace {

using nlohmann::json;
using prtool::Error;
using prtool::Keep;
using prtool::Manifest;

json sample() {
    return json::parse(R"({
        "schema": 3,
        "model": {"name": "m", "pretrained": "", "weights_sha256": "0", "embed_dim": 6, "logit_scale": 10, "logit_bias": -0.5, "scorer": "mlp", "scorer_trained": true},
        "prune": {"grid": [14, 14], "depth": 12, "locations": [4, 6, 8], "prefix_tokens": 1, "appended_tokens": 0, "appended_from": 1, "drops": []},
        "cost": {"embed_macs": 1, "token_macs": 1, "attention_macs": 1, "head_macs": 1},
        "preprocess": {"size": [224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "resize_mode": "shortest", "fill": 0},
        "default_keep": 118, "keep_range": [1, 196],
        "graphs": {"fp32": {"fused": {"file": "fused.onnx", "inputs": [{"name": "pixels", "dtype": "float32", "shape": ["batch", 3, 224, 224]}], "outputs": []}}},
        "parity": {"cosine": 1.0}, "versions": {"prtool": "0.1.0"}, "text": null, "classes": null, "files": {"fused.onnx": {"size": 3, "sha256": "ab"}}
    })");
}

std::string refusal(const std::string& text) {
    try {
        prtool::read_manifest(text, "prtool.json");
    } catch (const Error& error) {
        CHECK(error.status() == prtool::Status::bundle);
        return error.what();
    }
    return "";
}

std::string refusal_of(const std::function<void(json&)>& change) {
    json value = sample();
    change(value);
    return refusal(value.dump());
}

}  // namespace

TEST_CASE("what a manifest says is read") {
    const Manifest manifest = prtool::read_manifest(sample().dump(), "prtool.json");
    CHECK(manifest.prune.patches() == 196);
    CHECK(manifest.model.logit_scale == 10.0);
    CHECK(manifest.graphs.at("fp32").at("fused").file == "fused.onnx");
    CHECK(manifest.files.at("fused.onnx").size == 3);
    CHECK_FALSE(manifest.classes.has_value());
}

TEST_CASE("damage is named") {
    CHECK(refusal("{").find("not JSON") != std::string::npos);
    CHECK(refusal("[1]").find("not a JSON object") != std::string::npos);
    CHECK(refusal(std::string(100'000, '[')).find("not JSON") != std::string::npos);
    CHECK(refusal("{\"schema\": 3e400}").find("not JSON") != std::string::npos);
    CHECK(refusal("{\"schema\": 3.0}").find("has schema 3.0") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["schema"] = 2; }).find("has schema 2, but this library reads schema 3") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["schema"] = "3"; }).find("schema") != std::string::npos);
    CHECK(refusal_of([](json& v) { v.erase("model"); }).find("with the field model") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["new"] = 1; }).find("without the field new") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["default_keep"] = 197; }).find("manifest.default_keep") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["default_keep"] = 118.0; }).find("a whole number") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["default_keep"] = 18446744073709551615ULL; }).find("a whole number") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["keep_range"] = {5, 4}; }).find("manifest.keep_range[1]") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["prune"]["locations"] = {6, 4}; }).find("must rise") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["prune"]["locations"] = json::array(); }).find("must rise") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["prune"]["locations"] = {4, 13}; }).find("from 1 to 12") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["prune"]["drops"] = {1, 1, 0}; }).find("drops [1, 1, 0]") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["prune"]["grid"] = {1048576, 1048576}; }).find("a grid of") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["preprocess"]["std"] = {0.25, 0.0, 0.25}; }).find("above 0") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["preprocess"]["size"] = {224, 0}; }).find("manifest.preprocess.size[1]") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["preprocess"]["interpolation"] = "lanczos"; }).find("bicubic, bilinear, nearest") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["model"]["logit_scale"] = true; }).find("a number") != std::string::npos);
    CHECK(refusal_of([](json& v) { v["files"]["fused.onnx"]["size"] = -1; }).find("a whole number") != std::string::npos);
}

TEST_CASE("counts are the Python package's") {
    Manifest manifest = prtool::read_manifest(sample().dump(), "prtool.json");
    // 196 - floor(78 * i / 3)
    CHECK(manifest.counts({Keep::Default{}}) == std::vector<std::int64_t>{170, 144, 118});
    CHECK(manifest.counts({0.6}) == std::vector<std::int64_t>{170, 144, 118});
    CHECK(manifest.counts({1.0}) == std::vector<std::int64_t>{196, 196, 196});
    CHECK(manifest.counts({1e-9}) == std::vector<std::int64_t>{131, 66, 1});
    CHECK(manifest.counts({std::int64_t{49}}) == std::vector<std::int64_t>{147, 98, 49});
    CHECK(manifest.counts({std::vector<std::int64_t>{196, 50, 7}}) == std::vector<std::int64_t>{196, 50, 7});
    manifest.prune.drops = {3, 0, 1};
    // 196 - floor(147 * 3/4), twice, then 49
    CHECK(manifest.counts({std::int64_t{49}}) == std::vector<std::int64_t>{86, 86, 49});
    for (const Keep& keep : {Keep{0.0}, Keep{-0.1}, Keep{1.01}, Keep{std::int64_t{0}}, Keep{std::int64_t{197}}, Keep{std::vector<std::int64_t>{50, 60, 7}},
                             Keep{std::vector<std::int64_t>{50, 7}}, Keep{std::vector<std::int64_t>{197, 50, 7}}}) {
        CHECK_THROWS_AS(manifest.counts(keep), Error);
    }
}
