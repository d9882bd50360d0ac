// The manifest of a bundle: what its files are, as typed values that are read from JSON, strictly.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "spec.hpp"

namespace prtool {

inline constexpr std::int64_t kSchema = 1;

// One graph input or output: name, numpy's name of its dtype, and axes: a size, or the name of a dynamic axis.
struct TensorSpec {
    std::string name;
    std::string dtype;
    std::vector<std::variant<std::int64_t, std::string>> shape;

    bool operator==(const TensorSpec& other) const { return name == other.name && dtype == other.dtype && shape == other.shape; }
};

struct GraphSpec {
    std::string file;
    std::vector<TensorSpec> inputs;
    std::vector<TensorSpec> outputs;
};

struct ModelInfo {
    std::string name;
    std::string pretrained;
    std::string weights_sha256;
    std::int64_t embed_dim = 0;
    double logit_scale = 0.0;  // class logits are scale x cosine + bias
    double logit_bias = 0.0;
};

struct ClassInfo {
    std::vector<std::string> names;  // in label order
    std::string file;                // of the class embeddings
};

struct TextInfo {
    std::int64_t context_length = 0;  // token ids of a prompt
    std::int64_t vocab_size = 0;      // each is below this one, and not negative
    std::string tokenizer;            // a file, or "" where there is none
};

struct FileDigest {
    std::int64_t size = 0;
    std::string sha256;
};

// How many patches a call keeps: nothing (the default), a ratio, a count, or a count for each location.
struct Keep {
    struct Default {};
    std::variant<Default, double, std::int64_t, std::vector<std::int64_t>> value;
};

struct Manifest {
    ModelInfo model;
    PruneSpec prune;
    Preprocess preprocess;
    Preprocess native;  // the same at the size of the unpruned model's images
    std::int64_t default_keep = 0;
    std::int64_t min_keep = 0;
    std::int64_t max_keep = 0;
    std::map<std::string, std::map<std::string, GraphSpec>> graphs;  // precision -> role -> graph
    std::int64_t patch_tokens_width = 0;  // 0: no graph gives patch tokens
    std::optional<TextInfo> text;
    std::optional<ClassInfo> classes;
    std::map<std::string, FileDigest> files;

    // How an image becomes the pixels of a mode.
    const Preprocess& preprocess_for(const std::string& mode) const { return mode == "full" ? native : preprocess; }

    // Patches kept at each location. Throws Error(Status::keep): outside the bundle's range, and what PruneSpec's functions throw.
    std::vector<std::int64_t> counts(const Keep& keep) const;
    // Whether no patch drops, whatever the bundle's range. Throws Error(Status::keep): the ratio is none.
    bool keeps_all(const Keep& keep) const;
};

// Throws Error(Status::bundle): not sealed, changed, no JSON, an unknown schema, or a field missing, unknown, of the wrong kind
// or out of range.
// `where` names the file in messages.
Manifest read_manifest(const std::string& json, const std::string& where);

}  // namespace prtool
