#include "image_files.hpp"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <set>
#include <stdexcept>
#include <utility>

namespace {

namespace fs = std::filesystem;

constexpr const char* kHidden = "hidden";
constexpr const char* kMade = "in folders of thumbnails or deleted files";
constexpr const char* kLinks = "links to folders, which are not followed";
constexpr const char* kNotRegular = "named pipes, sockets or devices";
constexpr const char* kBroken = "links to nothing";

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
    return text;
}

bool is_image(const fs::path& path) {
    static const std::set<std::string> known = {".jpg", ".jpeg", ".jpe", ".jfif", ".png"};
    return known.count(lower(path.extension().string())) != 0;
}

const char* why_folder(const std::string& name) {
    static const std::set<std::string> made = {"@eadir", "__macosx", "thumbs", "thumbnails", "#recycle", "@recycle", "$recycle.bin", "lost+found"};
    if (name.front() == '.') return kHidden;
    return made.count(lower(name)) != 0 ? kMade : nullptr;
}

// A path on one line.
std::string shown(const std::string& path) {
    std::string text;
    for (const char letter : path) text += static_cast<unsigned char>(letter) < 0x20 || letter == 0x7f ? '?' : letter;
    return text;
}

// Searches folders, and counts what is left out.
class Search {
public:
    std::vector<std::string> images_in(const fs::path& folder) {
        found_.clear();
        waiting_ = {{folder, nullptr}};
        while (!waiting_.empty()) {
            const auto [inside, reason] = waiting_.back();
            waiting_.pop_back();
            std::error_code failed;
            for (fs::directory_iterator entry(inside, failed); !failed && entry != fs::directory_iterator(); entry.increment(failed)) take(*entry, reason);
            if (failed && reason == nullptr) {
                throw std::runtime_error(inside.string() + " cannot be listed: " + failed.message() + "; give a folder of images");
            }
        }
        std::sort(found_.begin(), found_.end());
        std::vector<std::string> names;
        for (const fs::path& path : found_) names.push_back(path.string());
        return names;
    }

    std::string note() const {
        std::string text;
        std::size_t total = 0;
        for (const auto& [reason, items] : left_out_) {
            text += (text.empty() ? "" : ", ") + std::to_string(items.first) + " " + reason + " (the first: " + items.second + ")";
            total += items.first;
        }
        return text.empty() ? "" : std::to_string(total) + " image files are not used: " + text;
    }

private:
    void take(const fs::directory_entry& entry, const char* reason) {
        std::error_code failed;  // of a link that leads nowhere, or to itself
        const fs::path& path = entry.path();
        const std::string name = path.filename().string();
        if (entry.is_directory(failed)) {
            if (entry.is_symlink(failed)) return leave_out(kLinks, path);
            waiting_.emplace_back(path, reason != nullptr ? reason : why_folder(name));
        } else if (is_image(path)) {
            if (reason == nullptr && name.front() == '.') reason = kHidden;
            if (reason == nullptr && !entry.is_regular_file(failed)) reason = failed || !entry.exists(failed) ? kBroken : kNotRegular;
            if (reason != nullptr) return leave_out(reason, path);
            found_.push_back(path);
        }
    }

    void leave_out(const char* reason, const fs::path& path) {
        auto& [count, first] = left_out_[reason];
        if (count++ == 0) first = shown(path.string());
    }

    std::vector<fs::path> found_;
    std::vector<std::pair<fs::path, const char*>> waiting_;  // folders, and why their images are left out
    std::map<std::string, std::pair<std::size_t, std::string>> left_out_;
};

}  // namespace

ImageFiles expand_images(const std::vector<std::string>& paths) {
    ImageFiles files;
    Search search;
    for (const std::string& path : paths) {
        std::error_code failed;
        if (!fs::is_directory(path, failed)) {
            files.paths.push_back(path);
            continue;
        }
        const std::vector<std::string> inside = search.images_in(path);
        files.paths.insert(files.paths.end(), inside.begin(), inside.end());
    }
    files.left_out = search.note();
    if (files.paths.empty()) throw std::runtime_error("no image found; give JPEG or PNG files, or folders that hold some");
    return files;
}
