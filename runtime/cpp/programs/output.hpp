// Embeddings and classes as files that appear whole or not at all, or as text on stdout.
#pragma once

#include <string>
#include <vector>

#include "prtool.hpp"

struct Embedded {
    std::vector<std::string> paths;
    std::vector<float> embeddings;  // (paths, width)
    std::size_t width = 0;
};

enum class Results { embeddings, classes };

// Finds out before any work whether results can go to `path`: it is missing, empty, or of the kind that is written, and neither a
// link nor one of `inputs` (files) nor in the bundle's folder. An empty path is stdout, which must be open.
// Throws std::runtime_error: they cannot; the name must end in .csv, or of embeddings in .npy.
void check_output(const std::string& path, Results what, const std::vector<std::string>& inputs, const std::string& bundle);

// .npy: (n, width) float32, and the paths in a file of that name with .paths.jsonl in place of .npy: one JSON text a line, in ASCII; a
// byte that is not UTF-8 is written as Python's surrogateescape does it.
// .csv and stdout (an empty path): a row an image, its path first. Throws std::runtime_error: it cannot be written.
void write_embeddings(const Embedded& embedded, const std::string& path);

// A row an image and class: path, rank from 1, label, name, probability. Throws std::runtime_error: it cannot be written.
void write_classes(const std::vector<std::string>& paths, const std::vector<std::vector<prtool::Prediction>>& classes, const std::string& path);

// Writes out what is on its way to stdout. Throws std::runtime_error: stdout is closed or full.
void finish_stdout();
