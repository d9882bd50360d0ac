// Which files a list of paths stands for.
#pragma once

#include <string>
#include <vector>

// Files as they are, and each folder's JPEG and PNG files, sorted, in its place; hidden ones (".name") are left out.
// Throws std::runtime_error: a folder cannot be listed, or nothing was found.
std::vector<std::string> expand_images(const std::vector<std::string>& paths);
