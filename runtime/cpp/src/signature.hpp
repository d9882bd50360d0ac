// The inputs and outputs that every graph of a bundle must have (docs/bundle-format.md, section 3).
#pragma once

#include <string>
#include <vector>

#include "manifest.hpp"

namespace prtool {

// Throws Error(Status::bundle): a precision has other roles than it must have, or a graph's inputs and outputs are not those
// of its role, of the manifest's image, grid, locations and widths.
void check_signatures(const Manifest& manifest);

// Inputs or outputs as they stand in a message.
std::string signature_text(const std::vector<TensorSpec>& tensors);

}  // namespace prtool
