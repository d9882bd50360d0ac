// The sizes that an engine is built for, where it is one that builds ahead.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "manifest.hpp"

namespace prtool {

struct ShapeRange {
    std::int64_t least = 0;
    std::int64_t usual = 0;  // the builder makes this one fast
    std::int64_t most = 0;
};

// By the name of a free axis ("batch", "tokens"), or of an input that is itself a shape ("k").
using Profile = std::map<std::string, ShapeRange>;

// The sizes of a bundle's whole keep range at 1 to 32 images, the Python package's default.
Profile profile_of(const Manifest& manifest);

}  // namespace prtool
