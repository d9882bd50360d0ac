#include "signature.hpp"

#include <utility>

#include "errors.hpp"

namespace prtool {

namespace {

constexpr const char* kFirstPrecision = "fp32";
constexpr std::int64_t kMostWidth = 65'536;

// The width D of a token, which only the graphs say: the last axis of POST's input.
std::int64_t token_width(const std::map<std::string, GraphSpec>& roles) {
    const auto post = roles.find("post");
    const bool known = post != roles.end() && !post->second.inputs.empty() && !post->second.inputs.front().shape.empty();
    const auto* const width = known ? std::get_if<std::int64_t>(&post->second.inputs.front().shape.back()) : nullptr;
    if (width == nullptr || *width < 1 || *width > kMostWidth) {
        throw Error(Status::bundle, "the manifest's graph 'post' of fp32 takes no tokens of a width from 1 to " + std::to_string(kMostWidth) + "; export the bundle again");
    }
    return *width;
}

using Signatures = std::map<std::string, std::pair<std::vector<TensorSpec>, std::vector<TensorSpec>>>;

Signatures signatures_of(const Manifest& manifest, std::int64_t width, bool with_text) {
    const PruneSpec& prune = manifest.prune;
    const std::int64_t patches = prune.patches();
    const std::string batch = "batch";
    const TensorSpec pixels{"pixels", "float32", {batch, std::int64_t{3}, std::int64_t{manifest.preprocess.height}, std::int64_t{manifest.preprocess.width}}};
    const TensorSpec embedding{"embedding", "float32", {batch, manifest.model.embed_dim}};
    const TensorSpec entering{"tokens", "float32", {batch, prune.prefix_tokens + prune.learnable_tokens + patches, width}};
    const TensorSpec staying{"tokens", "float32", {batch, std::string("tokens"), width}};
    const TensorSpec moved{"tokens_out", "float32", staying.shape};
    const TensorSpec counts{"k", "int64", {static_cast<std::int64_t>(prune.locations.size())}};
    Signatures found = {
        {"full", {{pixels}, {embedding}}},
        {"pre", {{pixels}, {entering, {"scores", "float32", {batch, patches}}}}},
        {"post", {{staying}, {embedding}}},
        {"fused", {{pixels, counts}, {embedding}}},
    };
    for (std::size_t place = 1; place < prune.locations.size(); ++place) {
        found["mid_" + std::to_string(place)] = {{staying}, {moved, {"scores", "float32", {batch, std::string("patches")}}}};
    }
    if (manifest.text && with_text) found["text"] = {{{"tokens", "int64", {batch, manifest.text->context_length}}}, {embedding}};
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
    const std::int64_t width = token_width(manifest.graphs.at(kFirstPrecision));
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
