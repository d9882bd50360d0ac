// What a graph file holds, read from its protobuf bytes before any engine sees it; docs/bundle-format.md is normative.
//
// An engine is native code that follows what a file says: loops, functions, external files. Only graphs that the exporter can
// write pass here. Payloads of tensors are skipped, so the time grows with the number of nodes, not with the weights.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "guarded_file.hpp"
#include "manifest.hpp"

namespace prtool {

// Every operator that the exporter writes, over all towers and precisions, sorted.
const std::vector<std::string>& graph_operators();

// Walks one graph file. spec: its name, inputs and outputs in the manifest; files: every file of the bundle, by name.
// Throws Error(Status::bundle): the file is not an ONNX graph, or holds anything that the exporter does not write.
void check_graph(const GuardedFile& file, const GraphSpec& spec, const std::map<std::string, FileDigest>& files);

}  // namespace prtool
