// Manifests: what is read, what each damage is called, and which patches stay.
#include <doctest/doctest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "manifest.hpp"
#include "sha256.hpp"

namespace {

using nlohmann::json;
using prtool::Error;
using prtool::Keep;
using prtool::Manifest;

json tensor(const char* name, const char* dtype, const json& shape) {
    return {{"name", name}, {"dtype", dtype}, {"shape", shape}};
}

json graph(const std::string& role, const json& inputs, const json& outputs) {
    return {{"file", role + ".onnx"}, {"inputs", inputs}, {"outputs", outputs}};
}

json graphs() {
    const json pixels = tensor("pixels", "float32", {"batch", 3, 224, 224}), embedding = tensor("embedding", "float32", {"batch", 6});
    const json tokens = tensor("tokens", "float32", {"batch", "tokens", 8}), moved = tensor("tokens_out", "float32", {"batch", "tokens", 8});
    const json entering = tensor("tokens", "float32", {"batch", 197, 8}), first = tensor("scores", "float32", {"batch", 196});
    const json scores = tensor("scores", "float32", {"batch", "patches"}), k = tensor("k", "int64", {3});
    const json some = json::array({pixels}), given = json::array({embedding}), between = json::array({tokens});
    return {{"full", graph("full", some, given)},
            {"pre", graph("pre", some, json::array({entering, first}))},
            {"mid_1", graph("mid_1", between, json::array({moved, scores}))},
            {"mid_2", graph("mid_2", between, json::array({moved, scores}))},
            {"post", graph("post", between, given)},
            {"fused", graph("fused", json::array({pixels, k}), given)}};
}

json sample() {
    json value = json::parse(R"({
        "schema": 1,
        "model": {"name": "m", "pretrained": "", "weights_sha256": "0", "embed_dim": 6, "logit_scale": 10, "logit_bias": -0.5, "scorer": "mlp", "scorer_trained": true},
        "prune": {"grid": [14, 14], "depth": 12, "locations": [4, 6, 8], "prefix_tokens": 1, "learnable_tokens": 0, "learnable_from_block": 1, "drop_ratios": []},
        "cost": {"embed_macs": 1, "token_macs": 1, "attention_macs": 1, "head_macs": 1},
        "preprocess": {"size": [224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "resize_mode": "shortest", "fill": 0},
        "native_size": [224, 224], "default_keep": 118, "keep_range": [1, 196],
        "graphs": {},
        "parity": {"cosine": 1.0}, "versions": {"prtool": "0.1.0"}, "text": null, "classes": null, "files": {"fused.onnx": {"size": 3, "sha256": "ab"}}
    })");
    value["graphs"]["fp32"] = graphs();
    return value;
}

// Smaller images than the unpruned model's, and patches that merge at the locations, or none that goes.
json of_method(const std::string& method) {
    json value = sample();
    value["native_size"] = {256, 240};
    value["cost"]["native_tokens"] = 241;
    json& roles = value["graphs"]["fp32"];
    for (const char* role : {"pre", "mid_1", "mid_2", "post"}) roles.erase(role);
    roles["full"]["inputs"][0]["shape"] = {"batch", 3, 256, 240};
    value["prune"]["method"] = method;
    if (method == "merge") {
        value["keep_range"] = {49, 196};
    } else {
        value["prune"]["locations"] = json::array();
        value["keep_range"] = {196, 196};
        value["default_keep"] = 196;
        roles["fused"]["inputs"].erase(1);
    }
    return value;
}

// As the Python package writes it: the seal is the last member, and not among the bytes that it is the digest of.
std::string sealed(const std::string& text) {
    return text + ",\n \"seal\": \"" + prtool::sha256_text(text) + "\"\n}\n";
}

std::string sealed(const json& value) {
    const std::string text = value.dump(1);
    return sealed(text.substr(0, text.size() - 2));
}

std::string rejection(const std::string& text) {
    try {
        prtool::read_manifest(text, "prtool.json");
    } catch (const Error& error) {
        CHECK(error.status() == prtool::Status::bundle);
        return error.what();
    }
    return "";
}

std::string rejection_of(const std::function<void(json&)>& change, json value = sample()) {
    change(value);
    return rejection(sealed(value));
}

std::string rejection_of(const std::string& method, const std::function<void(json&)>& change) { return rejection_of(change, of_method(method)); }

}  // namespace

TEST_CASE("what a manifest says is read") {
    const Manifest manifest = prtool::read_manifest(sealed(sample()), "prtool.json");
    CHECK(manifest.prune.patches() == 196);
    CHECK(manifest.model.logit_scale == 10.0);
    CHECK(manifest.graphs.at("fp32").at("fused").file == "fused.onnx");
    CHECK(manifest.files.at("fused.onnx").size == 3);
    CHECK_FALSE(manifest.classes.has_value());
}

TEST_CASE("damage is named") {
    CHECK(rejection("{").find("does not end in its seal") != std::string::npos);
    CHECK(rejection(sealed(std::string("[1"))).find("not JSON") != std::string::npos);
    CHECK(rejection(sealed(std::string(100'000, '['))).find("nested deeper than 32") != std::string::npos);
    CHECK(rejection(sealed(std::string("{\"schema\": 3e400"))).find("not finite") != std::string::npos);
    CHECK(rejection(sealed(std::string("{\"schema\": 4.0"))).find("has schema 4.0") != std::string::npos);
    CHECK(rejection(sealed("{\"schema\": 1" + std::string(100, '0'))).find("beyond 2^53") != std::string::npos);
    CHECK(rejection(sealed(std::string("{\"schema\": 9007199254740993"))).find("9007199254740993") != std::string::npos);
    CHECK(rejection(sealed(std::string("{\"schema\": 4, \"schema\": 4"))).find("'schema' twice") != std::string::npos);
    CHECK(rejection(sealed(std::string("{\"\xff\": 4"))).find("not JSON") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["schema"] = 2; }).find("has schema 2, but this library reads schema 1") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["metadata"] = {{"author", "somebody"}}; }).empty());
    CHECK(rejection_of([](json& v) { v["metadata"] = {{"author", 5}}; }).find("metadata.author") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["metadata"] = {{"", "x"}}; }).find("1 to 255 bytes") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["metadata"] = {{"long", std::string(65'537, 'x')}}; }).find("65536 bytes") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["schema"] = "4"; }).find("schema") != std::string::npos);
    CHECK(rejection_of([](json& v) { v.erase("model"); }).find("with the field model") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["new"] = 1; }).find("without the field new") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["default_keep"] = 197; }).find("manifest.default_keep") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["default_keep"] = 118.5; }).find("a whole number") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["default_keep"] = 18446744073709551615ULL; }).find("18446744073709551615, beyond 2^53") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["keep_range"] = {5, 4}; }).find("manifest.keep_range[1]") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["locations"] = {6, 4}; }).find("must rise") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["locations"] = json::array(); }).find("must rise") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["locations"] = {4, 13}; }).find("from 1 to 12") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["drop_ratios"] = {1, 1, 0}; }).find("[1, 1, 0]") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["grid"] = {14, 1025}; }).find("manifest.prune.grid[1]") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["preprocess"]["std"] = {0.25, 0.0, 0.25}; }).find("above 0") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["preprocess"]["size"] = {224, 0}; }).find("manifest.preprocess.size[1]") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["preprocess"]["interpolation"] = "lanczos"; }).find("bicubic, bilinear, nearest") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["model"]["logit_scale"] = true; }).find("a number") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["depth"] = 1001; }).find("manifest.prune.depth") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["prefix_tokens"] = 4097; }).find("manifest.prune.prefix_tokens") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["locations"] = std::vector<int>(13, 1); }).find("at most 12 items, not 13") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["model"]["embed_dim"] = 65537; }).find("manifest.model.embed_dim") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["preprocess"]["size"] = {8193, 224}; }).find("manifest.preprocess.size[0]") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["preprocess"]["fill"] = 256; }).find("manifest.preprocess.fill") != std::string::npos);
    for (const json& ratio : {json(0.9), json(8.5), json("1")}) {
        const std::string found = rejection_of([&ratio](json& v) { v["preprocess"]["resize_ratio"] = ratio; });
        CHECK(found.find("manifest.preprocess.resize_ratio") != std::string::npos);
    }
    CHECK(rejection_of([](json& v) { v["cost"] = {{"embed_macs", 0}, {"token_macs", 0}, {"attention_macs", 0}, {"head_macs", 0}}; }).find("an image costs nothing") !=
          std::string::npos);
    CHECK(rejection_of([](json& v) { v["cost"]["token_macs"] = -1; }).find("manifest.cost.token_macs") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["text"] = {{"context_length", 65537}, {"vocab_size", 9}, {"tokenizer", ""}}; }).find("context_length") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["text"] = {{"context_length", 7}, {"vocab_size", 2147483648}, {"tokenizer", ""}}; }).find("vocab_size") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["graphs"]["fp32"]["fused"]["inputs"][1]["shape"] = {2}; }).find("k int64 [2]") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["graphs"]["fp32"]["full"]["outputs"][0]["dtype"] = "float64"; }).find("embedding float64") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["graphs"]["fp32"]["mid_3"] = v["graphs"]["fp32"]["full"]; }).find("mid_2, mid_3, post") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["graphs"]["fp32"].erase("pre"); }).find("must be full, fused, mid_1, mid_2, post, pre") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["graphs"]["fp32"]["post"]["inputs"][0]["shape"][2] = 65537; }).find("from 1 to 65536") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["preprocess"]["std"] = {0.25, 1e-300, 0.25}; }).find("std 1e-300") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["classes"] = {{"names", json::array()}, {"templates", json::array()}, {"file", "f"}}; }).find("at least one name") !=
          std::string::npos);
    CHECK(rejection_of([](json& v) { v["graphs"]["int8"] = v["graphs"]["fp32"]; v["graphs"].erase("fp32"); }).find("no graphs of fp32") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["files"]["fused.onnx"]["size"] = -1; }).find("a whole number") != std::string::npos);
}

TEST_CASE("merging and smaller images are read") {
    for (const std::string method : {"merge", "none"}) {
        const Manifest manifest = prtool::read_manifest(sealed(of_method(method)), "prtool.json");
        CHECK(prtool::method_name(manifest.prune.method) == method);
        CHECK(manifest.preprocess_for("fused").height == 224);
        CHECK(manifest.preprocess_for("full").height == 256);
        CHECK(manifest.preprocess_for("full").width == 240);
        CHECK(manifest.preprocess_for("full").mean == manifest.preprocess.mean);
        CHECK(prtool::modes_of(manifest.prune.method) == std::vector<std::string>{"fused", "full"});
    }
}

TEST_CASE("what does not fit a method is named") {
    CHECK(rejection_of([](json& v) { v.erase("native_size"); }).find("with the field native_size") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["native_size"] = {224, 223}; }).find("[224, 223]") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["native_size"] = {4097, 4096}; }).find("16777216") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["native_size"] = {240, 240}; v["cost"]["native_tokens"] = 198; }).find("240, 240]") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["method"] = "pool"; }).find("rank, merge, none") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["method"] = "none"; }).find("must be none") != std::string::npos);
    CHECK(rejection_of([](json& v) { v["prune"]["method"] = "merge"; }).find("keep_range[0]") != std::string::npos);
    CHECK(rejection_of("merge", [](json& v) { v["prune"]["locations"] = {4, 6, 12}; }).find("from 1 to 11") != std::string::npos);
    CHECK(rejection_of("merge", [](json& v) { v["prune"]["locations"] = json::array(); }).find("must rise") != std::string::npos);
    CHECK(rejection_of("merge", [](json& v) { v["prune"]["learnable_tokens"] = 1; }).find("takes none") != std::string::npos);
    CHECK(rejection_of("merge", [](json& v) { v["keep_range"] = {48, 196}; }).find("keep_range[0]") != std::string::npos);
    CHECK(rejection_of("merge", [](json& v) { v["graphs"]["fp32"]["pre"] = graphs()["pre"]; }).find("must be full, fused") != std::string::npos);
    CHECK(rejection_of("none", [](json& v) { v["prune"]["locations"] = {4}; }).find("must be none") != std::string::npos);
    CHECK(rejection_of("none", [](json& v) { v["prune"].erase("locations"); }).find("must be none") != std::string::npos);
    CHECK(rejection_of("none", [](json& v) { v["prune"]["drop_ratios"] = {1}; }).find("drop_ratios [1]") != std::string::npos);
    CHECK(rejection_of("none", [](json& v) { v["prune"]["learnable_from_block"] = 2; }).find("learnable_from_block") != std::string::npos);
    CHECK(rejection_of("none", [](json& v) { v["keep_range"] = {195, 196}; }).find("keep_range[0]") != std::string::npos);
    CHECK(rejection_of("none", [](json& v) { v["graphs"]["fp32"]["fused"] = graphs()["fused"]; }).find("k int64 [3]") != std::string::npos);
    CHECK(rejection_of("none", [](json& v) { v["graphs"]["fp32"]["full"] = graphs()["full"]; }).find("256, 240]") != std::string::npos);
    const auto cost_of = [](const char* name, int value) {
        return [name, value](json& v) { v["cost"] = {{"embed_macs", 0}, {"token_macs", 0}, {"attention_macs", 0}, {"head_macs", 0}, {"native_tokens", 198}, {name, value}}; };
    };
    CHECK(rejection_of("merge", cost_of("attention_token_macs", 1)).find("attention_token_macs") != std::string::npos);
    CHECK(rejection_of("merge", cost_of("pair_macs", 1)).find("an image costs nothing") != std::string::npos);  // the unpruned model
    CHECK(rejection_of("merge", cost_of("native_embed_macs", 1)).find("an image costs nothing") != std::string::npos);  // the other one
    for (const int tokens : {-1, 0, 197}) {
        CHECK(rejection_of("merge", [tokens](json& v) { v["cost"]["native_tokens"] = tokens; }).find("native_tokens") != std::string::npos);
    }
    CHECK(rejection_of([](json& v) { v["cost"]["native_tokens"] = 198; }).find("native_tokens = 198") != std::string::npos);
}

TEST_CASE("any changed byte breaks the seal") {
    const std::string whole = sealed(sample());
    for (std::size_t place = 0; place < whole.size(); ++place) {
        std::string changed = whole;
        changed[place] = static_cast<char>(changed[place] ^ 1);
        CHECK_FALSE(rejection(changed).empty());
    }
    CHECK(rejection(whole + "\n").find("seal") != std::string::npos);
    CHECK(rejection(whole.substr(1)).find("was changed") != std::string::npos);
}

TEST_CASE("messages have one line and an end") {
    const std::string message = rejection_of([](json& v) { v["prune"][std::string(5'000'000, 'x') + "\x1b[2J\n"] = 1; });
    CHECK(message.size() < 1100);
    CHECK(rejection_of([](json& v) { v["preprocess"]["interpolation"] = "\x1b[2J\n"; }).find_first_of("\x1b\n") == std::string::npos);
}

TEST_CASE("a message hides and reorders nothing") {
    CHECK(prtool::one_line("a\x1b\n\x7f" "b") == "a\\x1b\\x0a\\x7f" "b");
    CHECK(prtool::one_line(std::string("\0", 1)) == "\\x00");
    CHECK(prtool::one_line("\xc2\x85\xd8\x9c\xe2\x80\xae\xe2\x81\xa6") == "\\x85\\u061c\\u202e\\u2066");
    CHECK(prtool::one_line("\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xff \xe2") == "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xff \xe2");
}

TEST_CASE("counts are the Python package's") {
    Manifest manifest = prtool::read_manifest(sealed(sample()), "prtool.json");
    // 196 - floor(78 * i / 3)
    CHECK(manifest.counts({Keep::Default{}}) == std::vector<std::int64_t>{170, 144, 118});
    CHECK(manifest.counts({0.6}) == std::vector<std::int64_t>{170, 144, 118});
    CHECK(manifest.counts({1.0}) == std::vector<std::int64_t>{196, 196, 196});
    CHECK(manifest.counts({1e-9}) == std::vector<std::int64_t>{131, 66, 1});
    CHECK(manifest.counts({std::int64_t{49}}) == std::vector<std::int64_t>{147, 98, 49});
    CHECK(manifest.counts({std::vector<std::int64_t>{196, 50, 7}}) == std::vector<std::int64_t>{196, 50, 7});
    manifest.prune.drop_ratios = {3, 0, 1};
    // 196 - floor(147 * 3/4), twice, then 49
    CHECK(manifest.counts({std::int64_t{49}}) == std::vector<std::int64_t>{86, 86, 49});
    for (const Keep& keep : {Keep{0.0}, Keep{-0.1}, Keep{1.01}, Keep{std::int64_t{0}}, Keep{std::int64_t{197}}, Keep{std::vector<std::int64_t>{50, 60, 7}},
                             Keep{std::vector<std::int64_t>{50, 7}}, Keep{std::vector<std::int64_t>{197, 50, 7}}}) {
        CHECK_THROWS_AS(manifest.counts(keep), Error);
    }
}

TEST_CASE("merging leaves half of the patches in each block at least") {
    const Manifest manifest = prtool::read_manifest(sealed(of_method("merge")), "prtool.json");
    // Equal steps of r patches: the last block has 196 - 2r of them, and r is at most half of these.
    CHECK(manifest.prune.least_keep() == 49);
    CHECK(manifest.counts({std::int64_t{49}}) == std::vector<std::int64_t>{147, 98, 49});
    CHECK(manifest.counts({std::int64_t{118}}) == std::vector<std::int64_t>{170, 144, 118});
    CHECK(manifest.counts({std::vector<std::int64_t>{196, 98, 67}}) == std::vector<std::int64_t>{196, 98, 67});
    for (const Keep& keep : {Keep{std::int64_t{48}}, Keep{0.2}, Keep{std::vector<std::int64_t>{97, 97, 97}}, Keep{std::vector<std::int64_t>{196, 140, 69}},
                             Keep{std::vector<std::int64_t>{}}}) {
        CHECK_THROWS_AS(manifest.counts(keep), Error);
    }
}

TEST_CASE("with no location every patch stays") {
    const Manifest manifest = prtool::read_manifest(sealed(of_method("none")), "prtool.json");
    for (const Keep& keep : {Keep{Keep::Default{}}, Keep{1.0}, Keep{std::int64_t{196}}, Keep{std::vector<std::int64_t>{}}}) CHECK(manifest.counts(keep).empty());
    for (const Keep& keep : {Keep{0.5}, Keep{std::int64_t{195}}, Keep{std::vector<std::int64_t>{196}}}) CHECK_THROWS_AS(manifest.counts(keep), Error);
}
