// The command line of prtool-run.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "prtool.hpp"

// A wrong command line: the message goes to stderr with the usage, and the exit status is 2.
class UsageError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

struct Arguments {
    std::string command;  // "embed" or "classify"
    std::string bundle;
    std::vector<std::string> paths;  // files and folders
    prtool::Keep keep;
    std::string engine = "ort";
    std::string mode = "fused";
    std::string precision = "fp32";
    std::string output;  // .npy or .csv; empty: CSV on stdout
    long batch = 8;
    long threads = 0;
    long top = 5;
    long device = 0;
    bool cuda_graphs = false;
    bool jpeg_scaling = false;
    std::string cache;  // folder of built engines; empty: the user's
    bool help = false;
    bool version = false;
};

extern const char* const kUsage;

// Throws UsageError.
Arguments parse_arguments(int count, const char* const* words);
