#include "image_files.hpp"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <stdexcept>

namespace {

namespace fs = std::filesystem;

bool is_image(const fs::path& path) {
    std::string suffix = path.extension().string();
    std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
    return suffix == ".jpg" || suffix == ".jpeg" || suffix == ".jpe" || suffix == ".jfif" || suffix == ".png";
}

std::vector<std::string> images_in(const fs::path& folder) {
    std::vector<std::string> found;
    try {
        for (auto entry = fs::recursive_directory_iterator(folder); entry != fs::recursive_directory_iterator(); ++entry) {
            if (entry->path().filename().string().front() == '.') {
                if (entry->is_directory()) entry.disable_recursion_pending();
            } else if (is_image(entry->path()) && entry->is_regular_file()) {
                found.push_back(entry->path().string());
            }
        }
    } catch (const fs::filesystem_error& cause) {
        throw std::runtime_error(folder.string() + " cannot be listed: " + cause.code().message() + "; give a folder of images");
    }
    std::sort(found.begin(), found.end());
    return found;
}

}  // namespace

std::vector<std::string> expand_images(const std::vector<std::string>& paths) {
    std::vector<std::string> files;
    for (const std::string& path : paths) {
        if (!fs::is_directory(path)) {
            files.push_back(path);
            continue;
        }
        const std::vector<std::string> inside = images_in(path);
        files.insert(files.end(), inside.begin(), inside.end());
    }
    if (files.empty()) throw std::runtime_error("no image found; give JPEG or PNG files, or folders that hold some");
    return files;
}
