#include "pipeline.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "errors.hpp"

namespace prtool {

namespace {

// One graph: "fused", whose input `k` are the counts where there are locations, or "full", the baseline of every speed-up.
class WholePipeline final : public Pipeline {
public:
    WholePipeline(const std::string& role, const Bundle& bundle, std::unique_ptr<Engine> engine)
        : Pipeline(bundle, bundle.manifest().preprocess_for(role), std::move(engine)),
          graph_(load(role, bundle)),
          counted_(role == "fused" && !bundle.manifest().prune.locations.empty()) {}

private:
    void steps(Work& work, const Call& call, const float* pixels, float* embeddings) override {
        std::vector<TensorRef> inputs{input_of("pixels", pixels, pixels_shape(call.batch))};
        if (counted_) inputs.push_back(input_of("k", call.counts.data(), {static_cast<std::int64_t>(call.counts.size())}));
        graph_->run(inputs, {output_of("embedding", embeddings, embedding_shape(call.batch))}, work);
    }

    std::unique_ptr<Graph> graph_;
    bool counted_;
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
        : Pipeline(bundle, bundle.manifest().preprocess, std::move(engine)),
          prune_(bundle.manifest().prune),
          width_(token_width(spec_of("pre", bundle))),
          pre_(load("pre", bundle)) {
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

Pipeline::Pipeline(const Bundle& bundle, const Preprocess& image, std::unique_ptr<Engine> engine)
    : engine_(std::move(engine)), height_(image.height), width_(image.width), embed_dim_(bundle.manifest().model.embed_dim) {}

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
    const std::vector<std::string> modes = modes_of(bundle.manifest().prune.method);
    if (std::find(modes.begin(), modes.end(), mode) == modes.end()) {
        throw Error(Status::config, "mode = '" + mode + "', but a bundle with prune.method '" + method_name(bundle.manifest().prune.method) +
                                        "' runs in the modes " + joined(modes));
    }
    if (mode == "split") return std::make_unique<SplitPipeline>(bundle, std::move(engine));
    return std::make_unique<WholePipeline>(mode, bundle, std::move(engine));
}

}  // namespace prtool
