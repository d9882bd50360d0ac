#include "pipeline.hpp"

#include <cstddef>
#include <utility>

#include "errors.hpp"

namespace prtool {

namespace {

// The graph selects inside; the counts are its input `k`.
class FusedPipeline final : public Pipeline {
public:
    FusedPipeline(const Bundle& bundle, std::unique_ptr<Engine> engine)
        : Pipeline(bundle.manifest(), std::move(engine)), graph_(load("fused", bundle)) {}

private:
    void steps(Work& work, const Call& call, const float* pixels, float* embeddings) override {
        graph_->run({input_of("pixels", pixels, pixels_shape(call.batch)), input_of("k", call.counts.data(), {static_cast<std::int64_t>(call.counts.size())})},
                    {output_of("embedding", embeddings, embedding_shape(call.batch))}, work);
    }

    std::unique_ptr<Graph> graph_;
};

// The unpruned graph, the baseline of every speed-up; the counts play no part.
class FullPipeline final : public Pipeline {
public:
    FullPipeline(const Bundle& bundle, std::unique_ptr<Engine> engine)
        : Pipeline(bundle.manifest(), std::move(engine)), graph_(load("full", bundle)) {}

private:
    void steps(Work& work, const Call& call, const float* pixels, float* embeddings) override {
        graph_->run({input_of("pixels", pixels, pixels_shape(call.batch))}, {output_of("embedding", embeddings, embedding_shape(call.batch))}, work);
    }

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

// PRE, then for each location a selection and the graph after it; the last one is POST.
class SplitPipeline final : public Pipeline {
public:
    SplitPipeline(const Bundle& bundle, std::unique_ptr<Engine> engine)
        : Pipeline(bundle.manifest(), std::move(engine)), prune_(bundle.manifest().prune), width_(token_width(spec_of("pre", bundle))), pre_(load("pre", bundle)) {
        for (std::size_t place = 1; place < prune_.locations.size(); ++place) middle_.push_back(load("mid_" + std::to_string(place), bundle));
        post_ = load("post", bundle);
    }

private:
    enum Buffer : std::size_t { kTokens, kScores, kKept, kBuffers };

    void steps(Work& work, const Call& call, const float* pixels, float* embeddings) override {
        const std::int64_t batch = call.batch;
        std::int64_t patches = prune_.patches();
        float* tokens = buffer(work, 0, kTokens, batch * length(patches) * width_);
        float* scores = buffer(work, 0, kScores, batch * patches);
        pre_->run({input_of("pixels", pixels, pixels_shape(batch))},
                  {output_of("tokens", tokens, shape(batch, patches)), output_of("scores", scores, {batch, patches})}, work);
        for (std::size_t place = 0; place < call.counts.size(); ++place) {
            const std::int64_t k = call.counts[place];
            float* kept = buffer(work, place, kKept, batch * length(k) * width_);
            work.keep_best(scores, tokens, {batch, patches, width_, prune_.prefix_tokens, prune_.learnable_tokens}, k, kept);
            patches = k;
            if (place < middle_.size()) {
                tokens = buffer(work, place + 1, kTokens, batch * length(k) * width_);
                scores = buffer(work, place + 1, kScores, batch * k);
                middle_[place]->run({input_of("tokens", kept, shape(batch, k))},
                                    {output_of("tokens_out", tokens, shape(batch, k)), output_of("scores", scores, {batch, k})}, work);
            } else {
                post_->run({input_of("tokens", kept, shape(batch, k))}, {output_of("embedding", embeddings, embedding_shape(batch))}, work);
            }
        }
    }

    // Each location has its own buffers: a buffer keeps its memory only while its size stays.
    static float* buffer(Work& work, std::size_t place, Buffer what, std::int64_t count) {
        return work.floats(place * kBuffers + what, static_cast<std::size_t>(count));
    }
    std::int64_t length(std::int64_t patches) const { return prune_.prefix_tokens + patches + prune_.learnable_tokens; }
    std::vector<std::int64_t> shape(std::int64_t batch, std::int64_t patches) const { return {batch, length(patches), width_}; }

    PruneSpec prune_;
    std::int64_t width_;
    std::unique_ptr<Graph> pre_;
    std::vector<std::unique_ptr<Graph>> middle_;
    std::unique_ptr<Graph> post_;
};

}  // namespace

Pipeline::Pipeline(const Manifest& manifest, std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)),
      height_(manifest.preprocess.height),
      width_(manifest.preprocess.width),
      embed_dim_(manifest.model.embed_dim) {}

void Pipeline::embed(const float* pixels, std::int64_t batch, const std::vector<std::int64_t>& counts, float* embeddings) {
    const Call call = call_of(batch, counts);
    engine_->device().run(call, pixels, embeddings, [this, &call](Work& work, const float* in, float* out) { steps(work, call, in, out); });
}

void Pipeline::embed_on_device(const float* pixels, std::int64_t batch, const std::vector<std::int64_t>& counts, float* embeddings, void* stream) {
    const Call call = call_of(batch, counts);
    engine_->device().run_on_device(call, pixels, embeddings, stream, [this, &call](Work& work, const float* in, float* out) { steps(work, call, in, out); });
}

std::unique_ptr<Graph> Pipeline::load(const std::string& role, const Bundle& bundle) {
    const GraphSpec& spec = spec_of(role, bundle);
    // The engine opens files by their names: before and after they must be those that were checked.
    bundle.check_unchanged();
    std::unique_ptr<Graph> graph = engine_->load(bundle.file(spec.file), spec);
    bundle.check_unchanged();
    return graph;
}

const GraphSpec& Pipeline::spec_of(const std::string& role, const Bundle& bundle) const {
    return bundle.graph(role, engine_->graph_precision());
}

Call Pipeline::call_of(std::int64_t batch, const std::vector<std::int64_t>& counts) const {
    const auto images = static_cast<std::size_t>(batch);
    return {batch, counts, images * 3 * static_cast<std::size_t>(height_ * width_), images * static_cast<std::size_t>(embed_dim_)};
}

std::unique_ptr<Pipeline> make_pipeline(const std::string& mode, const Bundle& bundle, std::unique_ptr<Engine> engine) {
    if (mode == "fused") return std::make_unique<FusedPipeline>(bundle, std::move(engine));
    if (mode == "split") return std::make_unique<SplitPipeline>(bundle, std::move(engine));
    if (mode == "full") return std::make_unique<FullPipeline>(bundle, std::move(engine));
    throw Error(Status::config, "mode = '" + mode + "', but it must be one of fused, split, full");
}

}  // namespace prtool
