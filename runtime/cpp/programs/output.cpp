#include "output.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <sstream>
#include <stdexcept>

namespace {

namespace fs = std::filesystem;

bool ends_in(const std::string& path, const std::string& suffix) {
    return path.size() > suffix.size() && path.compare(path.size() - suffix.size(), suffix.size(), suffix) == 0;
}

// Writes to a hidden name beside the file, then renames.
void write_file(const fs::path& path, const std::function<void(std::ostream&)>& write) {
    const fs::path temporary = path.parent_path() / ("." + path.filename().string() + "." + std::to_string(getpid()) + ".part");
    std::ofstream file(temporary, std::ios::binary);
    if (file) write(file);
    file.close();
    std::error_code failed;
    if (file) fs::rename(temporary, path, failed);
    if (!file || failed) {
        const std::string reason = failed ? failed.message() : std::strerror(errno);
        fs::remove(temporary, failed);
        throw std::runtime_error(path.string() + " cannot be written: " + reason);
    }
}

// A field of CSV (RFC 4180).
std::string quoted(const std::string& text) {
    if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
    std::string found = "\"";
    for (const char letter : text) found += letter == '"' ? std::string("\"\"") : std::string(1, letter);
    return found + "\"";
}

void write_npy(std::ostream& out, const Embedded& embedded) {
    // Format version 1.0: magic, version, length of the header, header padded so that the data begins at a multiple of 64.
    std::ostringstream shape;
    shape << "{'descr': '<f4', 'fortran_order': False, 'shape': (" << embedded.paths.size() << ", " << embedded.width << "), }";
    std::string header = shape.str();
    constexpr std::size_t kBefore = 10;
    header.resize((kBefore + header.size() + 1 + 63) / 64 * 64 - kBefore, ' ');
    header.back() = '\n';
    out.write("\x93NUMPY\x01\x00", 8);
    out.put(static_cast<char>(header.size() & 255U)).put(static_cast<char>(header.size() >> 8U));
    out << header;
    out.write(reinterpret_cast<const char*>(embedded.embeddings.data()), static_cast<std::streamsize>(embedded.embeddings.size() * sizeof(float)));
}

void write_rows(std::ostream& out, const Embedded& embedded) {
    out.precision(9);
    for (std::size_t image = 0; image < embedded.paths.size(); ++image) {
        out << quoted(embedded.paths[image]);
        for (std::size_t axis = 0; axis < embedded.width; ++axis) out << ',' << embedded.embeddings[image * embedded.width + axis];
        out << '\n';
    }
}

}  // namespace

void check_output(const std::string& path) {
    if (path.empty()) return;
    if (!ends_in(path, ".npy") && !ends_in(path, ".csv")) throw std::runtime_error("output = " + path + ", but its name must end in .npy or .csv");
    if (fs::is_directory(path)) throw std::runtime_error("output = " + path + ", but that is a folder; name a file in it");
    const fs::path folder = fs::absolute(path).parent_path();
    if (access(folder.c_str(), W_OK) != 0) throw std::runtime_error(folder.string() + " cannot be written to: " + std::strerror(errno));
}

void write_embeddings(const Embedded& embedded, const std::string& path) {
    if (path.empty()) return write_rows(std::cout, embedded);
    if (ends_in(path, ".csv")) return write_file(path, [&](std::ostream& out) { write_rows(out, embedded); });
    write_file(path.substr(0, path.size() - 4) + ".paths.txt", [&](std::ostream& out) {
        for (const std::string& name : embedded.paths) out << name << '\n';
    });
    write_file(path, [&](std::ostream& out) { write_npy(out, embedded); });
}

void write_classes(const std::vector<std::string>& paths, const std::vector<std::vector<prtool::Prediction>>& classes, const std::string& path) {
    const auto write = [&](std::ostream& out) {
        out << "path,rank,label,class,probability\n";
        for (std::size_t image = 0; image < paths.size(); ++image) {
            std::size_t rank = 0;
            for (const prtool::Prediction& found : classes[image]) {
                out << quoted(paths[image]) << ',' << ++rank << ',' << found.label << ',' << quoted(found.name) << ',' << found.probability << '\n';
            }
        }
    };
    if (path.empty()) return write(std::cout);
    write_file(path, write);
}
