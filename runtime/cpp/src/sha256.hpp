// SHA-256 of a file, in one pass, and of bytes; as 64 hexadecimal digits in lower case.
#pragma once

#include <string>
#include <string_view>

#include "guarded_file.hpp"

namespace prtool {

// Throws Error(Status::bundle): the file cannot be read.
std::string sha256_of(const GuardedFile& file);
std::string sha256_text(std::string_view content);

}  // namespace prtool
