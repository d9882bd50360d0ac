// Files that are read whole, and that appear whole or not at all.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "errors.hpp"

namespace prtool::trt {

// What an error of the system (an errno) is called: "cannot write <path>: no space left on the disk; free some and call again".
Error storage_error(const std::filesystem::path& path, int error);

// Throws std::system_error: it cannot be read.
std::string read_file(const std::filesystem::path& path);

// Writes a file that was not there, to the disk itself. Throws Error(Status::storage).
void write_new_file(const std::filesystem::path& path, std::string_view content);

// Writes beside `path` and renames: a reader finds the old file or the new one. Makes the folder. Throws Error(Status::storage).
void replace_file(const std::filesystem::path& path, std::string_view content);

// Throws Error(Status::storage).
void make_folders(const std::filesystem::path& path);
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace prtool::trt
