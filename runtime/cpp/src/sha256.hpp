// SHA-256 of a file, in one pass.
#pragma once

#include <string>

namespace prtool {

// 64 hexadecimal digits, lower case. Throws Error(Status::bundle): the file cannot be read.
std::string sha256_file(const std::string& path);

}  // namespace prtool
