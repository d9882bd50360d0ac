// From paths of files and folders to image files.
#pragma once

#include <string>
#include <vector>

struct ImageFiles {
    std::vector<std::string> paths;
    std::string left_out;  // one line that counts the images that are not used, with the first of each kind; "" where there are none
};

// Files as they are, and each folder's JPEG and PNG files with its sub-folders', sorted by the parts of their paths, in its place.
// Left out are hidden files and folders (".name"), folders that systems make for thumbnails or deleted files ("@eaDir", ...), what is
// not a regular file, and links to folders. Throws std::runtime_error: a folder cannot be listed, or nothing was found.
ImageFiles expand_images(const std::vector<std::string>& paths);
