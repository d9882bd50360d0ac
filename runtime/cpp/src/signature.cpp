#include "signature.hpp"

#include <utility>
#include <variant>

#include "errors.hpp"

namespace prtool {

namespace {

constexpr const char* kFirstPrecision = "fp32";
constexpr std::int64_t kMostWidth = 65'536;

// The width D of a token, which only the graphs say: the last axis of POST's input. 0 where no graph is of tokens.
std::int64_t token_width(const Manifest& manifest) {
    if (manifest.prune.method != Method::rank) return 0;
    const std::map<std::string, GraphSpec>& roles = manifest.graphs.at(kFirstPrecision);
    const auto post = roles.find("post");
    const bool known = post != roles.end() && !post->second.inputs.empty() && !post->second.inputs.front().shape.empty();
    const auto* const width = known ? std::get_if<std::int64_t>(&post->second.inputs.front().shape.back()) : nullptr;
    if (width == nullptr || *width < 1 || *width > kMostWidth) {
        throw Error(Status::bundle, "the manifest's graph 'post' of fp32 takes no tokens of a width from 1 to " + std::to_string(kMostWidth) + "; export the bundle again");
    }
    return *width;
}

using Signatures = std::map<std::string, std::pair<std::vector<TensorSpec>, std::vector<TensorSpec>>>;

TensorSpec pixels_of(const Preprocess& image) {
    return {"pixels", "float32", {std::string("batch"), std::int64_t{3}, std::int64_t{image.height}, std::int64_t{image.width}}};
}

// The graphs that selection stands between.
void add_stages(Signatures& found, const PruneSpec& prune, const TensorSpec& pixels, const TensorSpec& embedding, std::int64_t width) {
    const std::string batch = "batch";
    const std::int64_t patches = prune.patches();
    const TensorSpec entering{"tokens", "float32", {batch, prune.prefix_tokens + prune.learnable_tokens + patches, width}};
    const TensorSpec staying{"tokens", "float32", {batch, std::string("tokens"), width}};
    const TensorSpec moved{"tokens_out", "float32", staying.shape};
    found["pre"] = {{pixels}, {entering, {"scores", "float32", {batch, patches}}}};
    found["post"] = {{staying}, {embedding}};
    for (std::size_t place = 1; place < prune.locations.size(); ++place) {
        found["mid_" + std::to_string(place)] = {{staying}, {moved, {"scores", "float32", {batch, std::string("patches")}}}};
    }
}

// FUSED that also gives the tokens of the patches that stay, and which these are.
void add_patch_tokens(Signatures& found, const PruneSpec& prune, std::int64_t width) {
    const std::string batch = "batch";
    const bool drops = !prune.locations.empty();
    const std::variant<std::int64_t, std::string> patches = drops ? std::variant<std::int64_t, std::string>{std::string("patches")} : prune.patches();
    auto signature = found.at("fused");
    signature.second.push_back({"patch_tokens", "float32", {batch, patches, width}});
    if (drops) signature.second.push_back({"indices", "int64", {batch, patches}});
    found["tokens"] = std::move(signature);
}

Signatures signatures_of(const Manifest& manifest, std::int64_t width, bool with_text) {
    const PruneSpec& prune = manifest.prune;
    const TensorSpec pixels = pixels_of(manifest.preprocess);
    const TensorSpec embedding{"embedding", "float32", {std::string("batch"), manifest.model.embed_dim}};
    Signatures found = {{"full", {{pixels_of(manifest.preprocess_for("full"))}, {embedding}}}, {"fused", {{pixels}, {embedding}}}};
    if (!prune.locations.empty()) found["fused"].first.push_back({"k", "int64", {static_cast<std::int64_t>(prune.locations.size())}});
    if (prune.method == Method::rank) add_stages(found, prune, pixels, embedding, width);
    if (manifest.patch_tokens_width > 0) add_patch_tokens(found, prune, manifest.patch_tokens_width);
    if (manifest.text && with_text) found["text"] = {{{"tokens", "int64", {std::string("batch"), manifest.text->context_length}}}, {embedding}};
    return found;
}

void check_same(const std::string& graph, const char* what, const std::vector<TensorSpec>& found, const std::vector<TensorSpec>& wanted) {
    if (found == wanted) return;
    throw Error(Status::bundle, "the manifest's " + graph + " " + what + " " + signature_text(found) + ", but it must be " + signature_text(wanted) + "; export the bundle again");
}

}  // namespace

std::string signature_text(const std::vector<TensorSpec>& tensors) {
    std::vector<std::string> texts;
    for (const TensorSpec& tensor : tensors) {
        std::string axes;
        for (const auto& axis : tensor.shape) {
            const auto* const name = std::get_if<std::string>(&axis);
            axes += (axes.empty() ? "" : ", ") + (name != nullptr ? shortened(*name) : std::to_string(std::get<std::int64_t>(axis)));
        }
        texts.push_back(tensor.name + " " + tensor.dtype + " [" + axes + "]");
    }
    return texts.empty() ? "nothing" : joined(texts);
}

void check_signatures(const Manifest& manifest) {
    if (manifest.graphs.count(kFirstPrecision) == 0) throw Error(Status::bundle, "the manifest has no graphs of fp32; export the bundle again");
    const std::int64_t width = token_width(manifest);
    for (const auto& [precision, roles] : manifest.graphs) {
        const Signatures wanted = signatures_of(manifest, width, precision == kFirstPrecision);
        if (names_of(roles) != names_of(wanted)) {
            throw Error(Status::bundle, "the manifest's graphs of " + shortened(precision) + " are " + joined(names_of(roles)) + ", but they must be " +
                                            joined(names_of(wanted)) + "; export the bundle again");
        }
        for (const auto& [role, graph] : roles) {
            const std::string name = "graph '" + role + "' of " + shortened(precision);
            check_same(name, "takes", graph.inputs, wanted.at(role).first);
            check_same(name, "gives", graph.outputs, wanted.at(role).second);
        }
    }
}

}  // namespace prtool
