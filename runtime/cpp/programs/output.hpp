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

// Throws std::runtime_error: the name ends in neither .npy nor .csv, or nothing can be written there.
void check_output(const std::string& path);

// .npy: (n, width) float32, and the paths, one a line, in a file of that name with .paths.txt in place of .npy.
// .csv and stdout (an empty path): a row an image, its path first. Throws std::runtime_error: it cannot be written.
void write_embeddings(const Embedded& embedded, const std::string& path);

// A row an image and class: path, rank from 1, label, name, probability.
void write_classes(const std::vector<std::string>& paths, const std::vector<std::vector<prtool::Prediction>>& classes, const std::string& path);
