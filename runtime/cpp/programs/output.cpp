#include "output.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "new_files.hpp"

namespace {

namespace fs = std::filesystem;

constexpr const char* kNpyMagic = "\x93NUMPY";
constexpr const char* kClassesHeader = "path,rank,label,class,probability";
constexpr off_t kHeadBytes = 4096;

bool ends_in(const std::string& path, const std::string& suffix) {
    return path.size() > suffix.size() && path.compare(path.size() - suffix.size(), suffix.size(), suffix) == 0;
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

// One character of UTF-8 at `place`, and the place after it; nothing where the bytes there are not UTF-8.
std::optional<std::uint32_t> character_at(const std::string& text, std::size_t& place) {
    const auto byte = [&text](std::size_t at) { return at < text.size() ? static_cast<unsigned char>(text[at]) : 0U; };
    const unsigned first = byte(place);
    const std::size_t length = first < 0x80 ? 1 : (first >> 5U) == 6 ? 2 : (first >> 4U) == 14 ? 3 : (first >> 3U) == 30 ? 4 : 0;
    std::uint32_t code = length < 2 ? first : first & (0x7fU >> length);
    for (std::size_t more = 1; more < length; ++more) {
        if ((byte(place + more) & 0xC0U) != 0x80U) return std::nullopt;
        code = code << 6U | (byte(place + more) & 0x3fU);
    }
    constexpr std::uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (length == 0 || code < smallest[length] || (code >= 0xD800 && code < 0xE000) || code > 0x10FFFF) return std::nullopt;
    place += length;
    return code;
}

std::string escape(std::uint32_t unit) {
    char text[8];
    std::snprintf(text, sizeof(text), "\\u%04x", unit & 0xffffU);
    return text;
}

// A JSON text in ASCII, so that neither a line break nor any byte of a name can shift the lines.
std::string json_text(const std::string& text) {
    std::string found = "\"";
    for (std::size_t place = 0; place < text.size();) {
        const std::size_t begin = place;
        const std::optional<std::uint32_t> code = character_at(text, place);
        if (!code) {
            found += escape(0xDC00U + static_cast<unsigned char>(text[begin]));
            place = begin + 1;
        } else if (*code >= 0x10000) {
            found += escape(0xD800U + ((*code - 0x10000) >> 10U)) + escape(0xDC00U + ((*code - 0x10000) & 0x3ffU));
        } else if (*code < 0x20 || *code >= 0x7f || *code == '"' || *code == '\\') {
            found += escape(*code);
        } else {
            found += static_cast<char>(*code);
        }
    }
    return found + "\"";
}

std::string paths_file(const std::string& path) {
    return path.substr(0, path.size() - 4) + ".paths.jsonl";
}

// Whether the beginning of a file is a row of embeddings: a path, then numbers.
bool is_row(const std::string& head) {
    std::size_t comma = head.find(',');
    if (head[0] == '"') {
        comma = 1;
        while (comma < head.size() && (head[comma] != '"' || head[comma + 1] == '"')) comma += head[comma] == '"' ? 2 : 1;
        ++comma;
    }
    if (comma >= head.size() || head[comma] != ',') return false;
    char* end = nullptr;
    std::strtod(head.c_str() + comma + 1, &end);
    return end != head.c_str() + comma + 1 && (*end == ',' || *end == '\n' || *end == '\0');
}

bool begins_with(const std::string& text, const std::string& beginning) {
    return text.compare(0, beginning.size(), beginning) == 0;
}

bool is_of_kind(const std::string& path, Results what, const std::string& head) {
    if (ends_in(path, ".npy")) return begins_with(head, kNpyMagic);
    if (ends_in(path, ".jsonl")) return head[0] == '"';
    return what == Results::classes ? begins_with(head, kClassesHeader) : is_row(head);
}

[[noreturn]] void reject(const std::string& path, const std::string& problem) {
    throw std::runtime_error("output = " + path + ", but " + problem + "; name another file, or move away what is there");
}

// Whether a file may be replaced by results.
void check_replaced(const std::string& path, Results what, const std::vector<std::string>& inputs) {
    struct stat found {};
    if (lstat(path.c_str(), &found) != 0) return;
    if (S_ISLNK(found.st_mode)) reject(path, "that is a link");
    if (S_ISDIR(found.st_mode)) reject(path, "that is a folder");
    if (!S_ISREG(found.st_mode)) reject(path, "that is not a regular file");
    for (const std::string& input : inputs) {
        struct stat given {};
        if (stat(input.c_str(), &given) == 0 && given.st_dev == found.st_dev && given.st_ino == found.st_ino) reject(path, "that is one of the images");
    }
    std::string head(static_cast<std::size_t>(std::min<off_t>(found.st_size, kHeadBytes)), '\0');
    std::ifstream(path, std::ios::binary).read(head.data(), static_cast<std::streamsize>(head.size()));
    if (!head.empty() && !is_of_kind(path, what, head)) reject(path, "that is not an earlier output of this command");
}

void check_stdout() {
    const int flags = fcntl(STDOUT_FILENO, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) throw std::runtime_error("stdout is closed; name a file with -o");
}

}  // namespace

void check_output(const std::string& path, Results what, const std::vector<std::string>& inputs, const std::string& bundle) {
    if (path.empty()) return check_stdout();
    const bool classes = what == Results::classes;
    if (!ends_in(path, ".csv") && (classes || !ends_in(path, ".npy"))) {
        throw std::runtime_error("output = " + path + ", but its name must end in " + (classes ? ".csv" : ".npy or .csv"));
    }
    check_replaced(path, what, inputs);
    if (ends_in(path, ".npy")) check_replaced(paths_file(path), what, inputs);
    const fs::path folder = fs::absolute(path).parent_path();
    if (access(folder.c_str(), W_OK) != 0) throw std::runtime_error(folder.string() + " cannot be written to: " + std::strerror(errno));
    std::error_code unknown;
    if (fs::equivalent(folder, bundle, unknown)) reject(path, "that is in the bundle's folder");
}

void finish_stdout() {
    errno = 0;
    std::cout.flush();
    if (!std::cout || std::fflush(stdout) != 0) throw std::runtime_error(std::string("stdout cannot be written: ") + std::strerror(errno != 0 ? errno : EIO));
}

void write_embeddings(const Embedded& embedded, const std::string& path) {
    if (path.empty()) return write_rows(std::cout, embedded);
    NewFiles files;
    if (ends_in(path, ".csv")) {
        files.write(path, [&](std::ostream& out) { write_rows(out, embedded); });
    } else {
        files.write(paths_file(path), [&](std::ostream& out) {
            for (const std::string& name : embedded.paths) out << json_text(name) << '\n';
        });
        files.write(path, [&](std::ostream& out) { write_npy(out, embedded); });
    }
    files.put();
}

void write_classes(const std::vector<std::string>& paths, const std::vector<std::vector<prtool::Prediction>>& classes, const std::string& path) {
    const auto write = [&](std::ostream& out) {
        out << kClassesHeader << '\n';
        for (std::size_t image = 0; image < paths.size(); ++image) {
            std::size_t rank = 0;
            for (const prtool::Prediction& found : classes[image]) {
                out << quoted(paths[image]) << ',' << ++rank << ',' << found.label << ',' << quoted(found.name) << ',' << found.probability << '\n';
            }
        }
    };
    if (path.empty()) return write(std::cout);
    NewFiles files;
    files.write(path, write);
    files.put();
}
