#include "manifest.hpp"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "errors.hpp"
#include "json.hpp"
#include "sha256.hpp"
#include "signature.hpp"

namespace prtool {

namespace {

// docs/bundle-format.md, "Limits".
constexpr std::int64_t kMostDepth = 1000;
constexpr std::int64_t kMostGridSide = 1024;
constexpr std::int64_t kMostImageSide = 8192;
constexpr std::int64_t kMostImagePixels = std::int64_t{1} << 24;
constexpr double kMostResizeRatio = 8.0;
constexpr std::int64_t kMostExtraTokens = 4096;
constexpr std::int64_t kMostWidth = 65536;
constexpr std::int64_t kMostContext = 65536;
constexpr std::int64_t kMostVocabulary = (std::int64_t{1} << 31) - 1;
constexpr std::size_t kMostFiles = 10'000;
constexpr std::size_t kMostMetadata = 1000;
constexpr std::size_t kMostMetadataKey = 255;
constexpr std::size_t kMostMetadataValue = 65'536;
constexpr std::size_t kMostClasses = 1'000'000;
constexpr std::int64_t kMostPatches = kMostGridSide * kMostGridSide;

[[noreturn]] void reject_together(const std::string& what) {
    throw Error(Status::bundle, "the manifest holds values that do not fit together: " + what + "; export the bundle again");
}

// At most one number per location, and so per block. The length is checked first: a list of millions is not read.
std::vector<std::int64_t> read_counts(const JsonReader& json, std::int64_t min, std::int64_t max, std::int64_t depth) {
    json.at_most(static_cast<std::size_t>(depth));
    return json.list<std::int64_t>([min, max](const JsonReader& item) { return item.whole(min, max); });
}

ModelInfo read_model(const JsonReader& json) {
    json.fields({"name", "pretrained", "weights_sha256", "embed_dim", "logit_scale", "logit_bias", "scorer", "scorer_trained"});
    json.at("scorer").text();
    json.at("scorer_trained").boolean();
    return {json.at("name").text(),         json.at("pretrained").text(),    json.at("weights_sha256").text(), json.at("embed_dim").whole(1, kMostWidth),
            json.at("logit_scale").number(), json.at("logit_bias").number()};
}

void check_locations(const PruneSpec& prune) {
    // Behind the last block's attention the head reads no patch: merging there would change nothing.
    const std::int64_t most = prune.depth - (prune.method == Method::merge ? 1 : 0);
    bool fits = prune.locations.empty() == (prune.method == Method::none);
    std::int64_t before = 0;
    for (const std::int64_t place : prune.locations) {
        fits = fits && place > before && place <= most;
        before = place;
    }
    if (!fits) {
        const std::string due = prune.method == Method::none ? " must be none" : " must rise, from 1 to " + std::to_string(most);
        reject_together("pruning locations " + listed(prune.locations) + " with method '" + method_name(prune.method) + "'" + due);
    }
    if (prune.method != Method::rank && prune.learnable_tokens > 0) {
        reject_together(std::to_string(prune.learnable_tokens) + " learnable tokens, but method '" + method_name(prune.method) + "' takes none");
    }
    if (prune.learnable_from_block > (prune.locations.empty() ? 1 : prune.locations.front())) {
        reject_together("learnable_from_block = " + std::to_string(prune.learnable_from_block) + ", but it must not be after the first location");
    }
    if (!prune.drop_ratios.empty() && (prune.drop_ratios.size() != prune.locations.size() || prune.drop_ratios.back() < 1)) {
        reject_together("drop_ratios " + listed(prune.drop_ratios) + " for locations " + listed(prune.locations));
    }
}

template <typename T>
T read_choice(const JsonReader& json, std::initializer_list<std::pair<const char*, T>> known) {
    const std::string found = json.text();
    std::vector<std::string> names;
    for (const auto& [name, value] : known) {
        if (found == name) return value;
        names.emplace_back(name);
    }
    json.reject("one of " + joined(names));
}

PruneSpec read_prune(const JsonReader& json) {
    json.fields({"grid", "depth"}, {"locations", "prefix_tokens", "learnable_tokens", "learnable_from_block", "drop_ratios", "method"});
    const std::vector<JsonReader> grid = json.at("grid").items(2);
    PruneSpec prune;
    prune.rows = grid[0].whole(1, kMostGridSide);
    prune.columns = grid[1].whole(1, kMostGridSide);
    prune.depth = json.at("depth").whole(1, kMostDepth);
    prune.locations = {4};
    if (const auto found = json.maybe("locations")) prune.locations = read_counts(*found, 1, kMostDepth, prune.depth);
    prune.prefix_tokens = json.whole_or("prefix_tokens", prune.prefix_tokens, 0, kMostExtraTokens);
    prune.learnable_tokens = json.whole_or("learnable_tokens", prune.learnable_tokens, 0, kMostExtraTokens);
    prune.learnable_from_block = json.whole_or("learnable_from_block", prune.learnable_from_block, 1, kMostDepth);
    if (const auto found = json.maybe("drop_ratios")) prune.drop_ratios = read_counts(*found, 0, kMostPatches, prune.depth);
    if (const auto found = json.maybe("method")) {
        prune.method = read_choice<Method>(*found, {{"rank", Method::rank}, {"merge", Method::merge}, {"none", Method::none}});
    }
    check_locations(prune);
    return prune;
}

std::array<double, 3> read_three(const JsonReader& json) {
    const std::vector<JsonReader> items = json.items(3);
    return {items[0].number(), items[1].number(), items[2].number()};
}

// Every pixel stays finite in float32, in which it is computed.
void check_normalised(const Preprocess& spec) {
    constexpr double min = 1.2e-38, max = 3.4e38;
    for (std::size_t channel = 0; channel < spec.mean.size(); ++channel) {
        const double mean = spec.mean[channel], std = spec.std[channel];
        const bool finite = std::abs(mean) <= max && std >= min && std <= max && std::max(std::abs(mean), std::abs(1.0 - mean)) / std <= max;
        if (!finite) reject_together("mean " + shown(mean) + " and std " + shown(std) + ", but std must be above 0, and pixels must stay finite in float32");
    }
}

void read_size(const JsonReader& json, Preprocess& spec) {
    const std::vector<JsonReader> size = json.items(2);
    spec.height = static_cast<int>(size[0].whole(1, kMostImageSide));
    spec.width = static_cast<int>(size[1].whole(1, kMostImageSide));
    if (std::int64_t{spec.height} * spec.width > kMostImagePixels) json.reject("at most " + std::to_string(kMostImagePixels) + " pixels");
}

void read_resize_ratio(const JsonReader& json, Preprocess& spec) {
    spec.resize_ratio = json.number();
    if (!(spec.resize_ratio >= 1.0 && spec.resize_ratio <= kMostResizeRatio)) json.reject("a number from 1 to " + shown(kMostResizeRatio));
    if (spec.resize_ratio != 1.0 && spec.resize_mode != ResizeMode::shortest) json.reject("1 unless resize_mode is \"shortest\"");
}

Preprocess read_preprocess(const JsonReader& json) {
    json.fields({"size", "mean", "std"}, {"interpolation", "resize_mode", "fill", "crop_rounding", "resize_ratio"});
    Preprocess spec;
    read_size(json.at("size"), spec);
    spec.mean = read_three(json.at("mean"));
    spec.std = read_three(json.at("std"));
    check_normalised(spec);
    if (const auto found = json.maybe("interpolation")) {
        spec.interpolation = read_choice<Interpolation>(
            *found, {{"bicubic", Interpolation::bicubic}, {"bilinear", Interpolation::bilinear}, {"nearest", Interpolation::nearest}});
    }
    if (const auto found = json.maybe("resize_mode")) {
        spec.resize_mode = read_choice<ResizeMode>(
            *found, {{"shortest", ResizeMode::shortest}, {"longest", ResizeMode::longest}, {"squash", ResizeMode::squash}});
    }
    if (const auto found = json.maybe("fill")) spec.fill = static_cast<int>(found->whole(0, 255));
    if (const auto found = json.maybe("crop_rounding")) {
        spec.crop_rounding = read_choice<CropRounding>(*found, {{"nearest", CropRounding::nearest}, {"floor", CropRounding::floor}});
    }
    if (const auto found = json.maybe("resize_ratio")) read_resize_ratio(*found, spec);
    return spec;
}

TensorSpec read_tensor(const JsonReader& json) {
    json.fields({"name", "dtype", "shape"});
    TensorSpec spec{json.at("name").text(), json.at("dtype").text(), {}};
    for (const JsonReader& axis : json.at("shape").items()) {
        if (axis.is_text()) {
            spec.shape.emplace_back(axis.text());
        } else {
            spec.shape.emplace_back(axis.whole());
        }
    }
    return spec;
}

GraphSpec read_graph(const JsonReader& json) {
    json.fields({"file", "inputs", "outputs"});
    return {json.at("file").text(), json.at("inputs").list<TensorSpec>(read_tensor), json.at("outputs").list<TensorSpec>(read_tensor)};
}

ClassInfo read_classes(const JsonReader& json) {
    json.fields({"names", "templates", "file"});
    const auto text = [](const JsonReader& item) { return item.text(); };
    json.at("templates").list<std::string>(text);
    json.at("names").at_most(kMostClasses);
    if (json.at("names").items().empty()) json.at("names").reject("at least one name");
    return {json.at("names").list<std::string>(text), json.at("file").text()};
}

FileDigest read_digest(const JsonReader& json) {
    json.fields({"size", "sha256"});
    return {json.at("size").whole(0, kMostWhole), json.at("sha256").text()};
}

using Costs = std::map<std::string, std::int64_t>;

// Whether an image whose last block sees so many tokens costs anything, `once` for all of them and block by block.
bool costs_something(const Costs& of, std::int64_t once, std::int64_t last_tokens) {
    const bool without_queries = of.at("last_block_queries") > 0 && of.at("last_block_queries") < last_tokens;
    return once + of.at("head_macs") + of.at("head_token_macs") + of.at("token_macs") + of.at("attention_macs") > 0 ||
           (without_queries && of.at("kv_token_macs") > 0);
}

void check_cost(const JsonReader& json, const Manifest& manifest) {
    json.fields({"embed_macs", "token_macs", "attention_macs", "head_macs"}, {"head_token_macs", "scorer_macs", "last_block_queries", "kv_token_macs",
                                                                              "attention_token_macs", "pair_macs", "native_tokens", "native_embed_macs"});
    Costs of = {{"head_token_macs", 0}, {"scorer_macs", 0}, {"last_block_queries", 0}, {"kv_token_macs", 0},
                {"attention_token_macs", 0}, {"pair_macs", 0}, {"native_tokens", 0}, {"native_embed_macs", 0}};
    for (const auto& [name, value] : json.entries()) of[name] = value.whole(0, kMostWhole);
    const PruneSpec& prune = manifest.prune;
    if (of["attention_token_macs"] > of["token_macs"]) reject_together("cost.attention_token_macs is a part of token_macs, but the larger one");
    const bool larger = manifest.native.height > manifest.preprocess.height || manifest.native.width > manifest.preprocess.width;
    const std::int64_t all = prune.prefix_tokens + prune.patches();
    if (larger ? of["native_tokens"] <= all : of["native_tokens"] != 0) {
        reject_together("cost.native_tokens = " + std::to_string(of["native_tokens"]) + ", but it must be above " + std::to_string(all) +
                        " where native_size is larger than preprocess.size, and 0 where it is the same");
    }
    const bool merges = prune.method == Method::merge;
    const std::int64_t chosen = merges ? (manifest.min_keep < prune.patches() ? of["pair_macs"] : 0) : of["scorer_macs"];
    const std::int64_t native = of["native_embed_macs"] > 0 ? of["native_embed_macs"] : of["embed_macs"];
    const std::int64_t tokens = larger ? of["native_tokens"] : all;
    if (!costs_something(of, native, tokens) || !costs_something(of, of["embed_macs"] + chosen, prune.prefix_tokens + manifest.min_keep + prune.learnable_tokens)) {
        reject_together("an image costs nothing");
    }
}

void check_recovery(const JsonReader& json) {
    json.fields({"rank", "first", "scale", "images", "copies", "keeps", "before", "after"});
    for (const char* name : {"rank", "first", "images"}) json.at(name).whole(1, kMostWhole);
    json.at("copies").whole(0, kMostWhole);
    json.at("scale").number();
    const std::vector<JsonReader> keeps = json.at("keeps").items();
    if (keeps.empty()) json.at("keeps").reject("at least one keep");
    for (const JsonReader& keep : keeps) keep.whole(1, kMostWhole);
    for (const char* name : {"before", "after"}) {
        for (const JsonReader& cosine : json.at(name).items(keeps.size())) cosine.number();
    }
}

// The width of the patch tokens that the graph "tokens" gives, which this library does not run.
std::int64_t read_patch_tokens(const JsonReader& json, const PruneSpec& prune) {
    json.fields({"block", "width"});
    if (prune.method == Method::merge) json.reject("null where patches merge");
    json.at("block").whole(prune.locations.empty() ? 1 : prune.locations.back(), prune.depth);
    return json.at("width").whole(1, kMostWidth);
}

// What this library does not use is checked all the same: a manifest of another form is another schema.
void check_unused(const JsonReader& json) {
    for (const auto& [name, value] : json.at("parity").entries()) value.number();
    for (const auto& [name, value] : json.at("versions").entries()) value.text();
    if (const auto recovery = json.maybe("recovery")) check_recovery(*recovery);
    const std::optional<JsonReader> metadata = json.maybe("metadata");
    if (!metadata) return;
    metadata->at_most(kMostMetadata);
    for (const auto& [name, value] : metadata->entries()) {
        if (name.empty() || name.size() > kMostMetadataKey) metadata->reject("an object with keys of 1 to " + std::to_string(kMostMetadataKey) + " bytes");
        if (value.text().size() > kMostMetadataValue) value.reject("a text of at most " + std::to_string(kMostMetadataValue) + " bytes");
    }
}

TextInfo read_text_side(const JsonReader& json) {
    json.fields({"context_length", "vocab_size", "tokenizer"});
    return {json.at("context_length").whole(1, kMostContext), json.at("vocab_size").whole(1, kMostVocabulary), json.at("tokenizer").text()};
}

void read_native(const JsonReader& json, Manifest& manifest) {
    const Preprocess& pruned = manifest.preprocess;
    manifest.native = pruned;
    read_size(json, manifest.native);
    if (manifest.native.height < pruned.height || manifest.native.width < pruned.width) {
        reject_together("native_size " + listed({manifest.native.height, manifest.native.width}) + ", but the pruned encoder reads larger images, " +
                        listed({pruned.height, pruned.width}));
    }
}

void read_keeps(const JsonReader& json, Manifest& manifest) {
    const std::vector<JsonReader> range = json.at("keep_range").items(2);
    manifest.min_keep = range[0].whole(manifest.prune.least_keep(), manifest.prune.patches());
    manifest.max_keep = range[1].whole(manifest.min_keep, manifest.prune.patches());
    manifest.default_keep = json.at("default_keep").whole(manifest.min_keep, manifest.max_keep);
}

Manifest read(const JsonReader& json) {
    json.fields({"schema", "model", "prune", "cost", "preprocess", "native_size", "default_keep", "keep_range", "graphs", "parity", "versions", "seal"},
                {"text", "classes", "recovery", "patch_tokens", "metadata", "files"});
    Manifest manifest;
    manifest.model = read_model(json.at("model"));
    manifest.prune = read_prune(json.at("prune"));
    manifest.preprocess = read_preprocess(json.at("preprocess"));
    read_native(json.at("native_size"), manifest);
    read_keeps(json, manifest);
    check_cost(json.at("cost"), manifest);
    check_unused(json);
    if (const auto given = json.maybe("patch_tokens")) manifest.patch_tokens_width = read_patch_tokens(*given, manifest.prune);
    if (const auto text = json.maybe("text")) manifest.text = read_text_side(*text);
    for (const auto& [precision, roles] : json.at("graphs").entries()) {
        for (const auto& [role, graph] : roles.entries()) manifest.graphs[precision].emplace(role, read_graph(graph));
    }
    if (const auto classes = json.maybe("classes")) manifest.classes = read_classes(*classes);
    if (const auto files = json.maybe("files")) {
        files->at_most(kMostFiles);
        for (const auto& [name, digest] : files->entries()) manifest.files.emplace(name, read_digest(digest));
    }
    return manifest;
}

std::int64_t in_range(const Manifest& manifest, std::int64_t k) {
    if (k < manifest.min_keep || k > manifest.max_keep) {
        if (manifest.prune.method != Method::rank) manifest.prune.counts(k);  // where the method allows no such number either, that is the reason
        throw Error(Status::keep, "k = " + std::to_string(k) + " patches, but this bundle allows " + std::to_string(manifest.min_keep) + " to " +
                                      std::to_string(manifest.max_keep) + "; give such a number, or export a run that allows others");
    }
    return k;
}

std::int64_t of_ratio(double ratio, std::int64_t patches) {
    if (!(std::isfinite(ratio) && ratio > 0.0 && ratio <= 1.0)) {
        throw Error(Status::keep, "keep ratio = " + shown(ratio) + ", but it must be above 0.0 and at most 1.0 (1.0 keeps every patch)");
    }
    // Round half up, as the Python package does.
    return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::floor(ratio * static_cast<double>(patches) + 0.5)));
}

// Patches that a keep which is no list leaves.
std::int64_t patches_of(const Manifest& manifest, const Keep& keep) {
    if (const auto* ratio = std::get_if<double>(&keep.value)) return of_ratio(*ratio, manifest.prune.patches());
    if (const auto* count = std::get_if<std::int64_t>(&keep.value)) return *count;
    return manifest.default_keep;
}

// The last member is the digest of all bytes before it, so that a change is noticed before anything is believed.
constexpr std::string_view kSealBefore = ",\n \"seal\": \"";
constexpr std::string_view kSealBehind = "\"\n}\n";
constexpr std::size_t kSealDigits = 64;
constexpr std::size_t kSealBytes = kSealBefore.size() + kSealDigits + kSealBehind.size();

void check_seal(const std::string& bytes, const std::string& where) {
    const std::string_view all = bytes;
    const std::string_view sealed = all.substr(0, all.size() - std::min(all.size(), kSealBytes));
    const std::string_view seal = all.substr(sealed.size());
    const bool formed = seal.size() == kSealBytes && seal.substr(0, kSealBefore.size()) == kSealBefore && seal.substr(kSealBefore.size() + kSealDigits) == kSealBehind;
    if (!formed) throw Error(Status::bundle, where + " does not end in its seal; it is damaged or of an older schema: make a new bundle with 'prtool export'");
    if (seal.substr(kSealBefore.size(), kSealDigits) != sha256_text(sealed)) {
        throw Error(Status::bundle, where + " was changed: its SHA-256 is not that of its seal; copy or export the bundle again");
    }
}

}  // namespace

std::vector<std::int64_t> Manifest::counts(const Keep& keep) const {
    if (const auto* given = std::get_if<std::vector<std::int64_t>>(&keep.value)) {
        prune.check_counts(*given);
        if (!given->empty()) in_range(*this, given->back());
        return *given;
    }
    return prune.counts(in_range(*this, patches_of(*this, keep)));
}

bool Manifest::keeps_all(const Keep& keep) const {
    if (const auto* given = std::get_if<std::vector<std::int64_t>>(&keep.value)) return *given == prune.counts(prune.patches());
    return patches_of(*this, keep) == prune.patches();
}

Manifest read_manifest(const std::string& json, const std::string& where) {
    check_seal(json, where);
    const nlohmann::json value = parse_strictly(json, where);
    if (!value.is_object()) throw Error(Status::bundle, "the manifest is not a JSON object; export the bundle again");
    const auto schema = value.find("schema");
    if (schema == value.end() || !schema->is_number_integer() || *schema != kSchema) {
        const std::string found = schema == value.end() ? "none" : shortened(schema->dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
        throw Error(Status::bundle, "the bundle has schema " + found + ", but this library reads schema " + std::to_string(kSchema) +
                                        "; make a new one with 'prtool export'");
    }
    Manifest manifest = read(JsonReader(value, "manifest"));
    check_signatures(manifest);
    return manifest;
}

}  // namespace prtool
