#include "pipeline.hpp"

#include "errors.hpp"
#include "select.hpp"

namespace prtool {

namespace {

// Sizes that every call needs.
struct Sizes {
    explicit Sizes(const Manifest& manifest)
        : height(manifest.preprocess.height), width(manifest.preprocess.width), embed_dim(manifest.model.embed_dim), prune(manifest.prune) {}

    std::vector<std::int64_t> pixels(std::int64_t batch) const { return {batch, 3, height, width}; }
    std::vector<std::int64_t> embedding(std::int64_t batch) const { return {batch, embed_dim}; }

    std::int64_t height;
    std::int64_t width;
    std::int64_t embed_dim;
    PruneSpec prune;
};

std::unique_ptr<Graph> load(const std::string& role, const Bundle& bundle, Engine& engine) {
    const GraphSpec& spec = bundle.graph(role, engine.graph_precision());
    return engine.load(bundle.file(spec.file), spec);
}

// The graph selects inside; the counts are its input `k`.
class FusedPipeline final : public Pipeline {
public:
    FusedPipeline(const Bundle& bundle, Engine& engine) : sizes_(bundle.manifest()), graph_(load("fused", bundle, engine)) {}

    void embed(const float* pixels, std::int64_t batch, const std::vector<std::int64_t>& counts, float* embeddings) override {
        graph_->run({input_of("pixels", pixels, sizes_.pixels(batch)), input_of("k", counts.data(), {static_cast<std::int64_t>(counts.size())})},
                    {output_of("embedding", embeddings, sizes_.embedding(batch))});
    }

private:
    Sizes sizes_;
    std::unique_ptr<Graph> graph_;
};

// The unpruned graph, the baseline of every speed-up; the counts play no part.
class FullPipeline final : public Pipeline {
public:
    FullPipeline(const Bundle& bundle, Engine& engine) : sizes_(bundle.manifest()), graph_(load("full", bundle, engine)) {}

    void embed(const float* pixels, std::int64_t batch, const std::vector<std::int64_t>&, float* embeddings) override {
        graph_->run({input_of("pixels", pixels, sizes_.pixels(batch))}, {output_of("embedding", embeddings, sizes_.embedding(batch))});
    }

private:
    Sizes sizes_;
    std::unique_ptr<Graph> graph_;
};

// The width of a token, as PRE declares it.
std::int64_t token_width(const GraphSpec& pre) {
    for (const TensorSpec& output : pre.outputs) {
        if (output.name != "tokens" || output.shape.size() != 3) continue;
        if (const auto* width = std::get_if<std::int64_t>(&output.shape[2])) return *width;
    }
    throw Error(Status::bundle, "graph 'pre' declares no output tokens of a fixed width; export the bundle again");
}

// PRE, then for each location a selection on the host and the graph behind it; the last one is POST.
class SplitPipeline final : public Pipeline {
public:
    SplitPipeline(const Bundle& bundle, Engine& engine)
        : sizes_(bundle.manifest()), width_(token_width(bundle.graph("pre", engine.graph_precision()))), pre_(load("pre", bundle, engine)) {
        for (std::size_t place = 1; place < sizes_.prune.locations.size(); ++place) {
            middle_.push_back(load("mid_" + std::to_string(place), bundle, engine));
        }
        post_ = load("post", bundle, engine);
    }

    void embed(const float* pixels, std::int64_t batch, const std::vector<std::int64_t>& counts, float* embeddings) override {
        std::int64_t patches = sizes_.prune.patches();
        std::vector<float> tokens = buffer(batch * length(patches) * width_);
        std::vector<float> scores = buffer(batch * patches);
        pre_->run({input_of("pixels", pixels, sizes_.pixels(batch))},
                  {output_of("tokens", tokens.data(), shape(batch, patches)), output_of("scores", scores.data(), {batch, patches})});
        for (std::size_t place = 0; place < counts.size(); ++place) {
            const std::int64_t k = counts[place];
            std::vector<float> kept = buffer(batch * length(k) * width_);
            gather(tokens.data(), {batch, patches, width_, sizes_.prune.prefix_tokens, sizes_.prune.appended_tokens},
                   select(scores.data(), batch, patches, k), k, kept.data());
            patches = k;
            if (place < middle_.size()) {
                tokens.resize(kept.size());
                scores.resize(static_cast<std::size_t>(batch * k));
                middle_[place]->run({input_of("tokens", kept.data(), shape(batch, k))},
                                    {output_of("tokens_out", tokens.data(), shape(batch, k)), output_of("scores", scores.data(), {batch, k})});
            } else {
                post_->run({input_of("tokens", kept.data(), shape(batch, k))}, {output_of("embedding", embeddings, sizes_.embedding(batch))});
            }
        }
    }

private:
    static std::vector<float> buffer(std::int64_t count) { return std::vector<float>(static_cast<std::size_t>(count)); }
    std::int64_t length(std::int64_t patches) const { return sizes_.prune.prefix_tokens + patches + sizes_.prune.appended_tokens; }
    std::vector<std::int64_t> shape(std::int64_t batch, std::int64_t patches) const { return {batch, length(patches), width_}; }

    Sizes sizes_;
    std::int64_t width_;
    std::unique_ptr<Graph> pre_;
    std::vector<std::unique_ptr<Graph>> middle_;
    std::unique_ptr<Graph> post_;
};

}  // namespace

std::unique_ptr<Pipeline> make_pipeline(const std::string& mode, const Bundle& bundle, Engine& engine) {
    if (mode == "fused") return std::make_unique<FusedPipeline>(bundle, engine);
    if (mode == "split") return std::make_unique<SplitPipeline>(bundle, engine);
    if (mode == "full") return std::make_unique<FullPipeline>(bundle, engine);
    throw Error(Status::config, "mode = '" + mode + "', but it must be one of fused, split, full");
}

}  // namespace prtool
