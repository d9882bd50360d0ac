// SHA-256 of a file, in one pass, and of bytes.
#pragma once

#include <string>
#include <string_view>

#include "guarded_file.hpp"

namespace prtool {

// 64 hexadecimal digits, lower case. Throws Error(Status::bundle): the file cannot be read.
std::string sha256_of(const GuardedFile& file);

// Of bytes: 32 bytes, and the same as 64 hexadecimal digits.
std::string sha256_bytes(std::string_view content);
std::string sha256_text(std::string_view content);

}  // namespace prtool
