// A manifest, the file of class embeddings, or a graph, of any bytes: read, or rejected with an Error.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

#include "errors.hpp"
#include "graph_file.hpp"
#include "manifest.hpp"
#include "classes.hpp"
#include "sha256.hpp"

namespace {

const std::string& scratch() {
    static const std::string path = [] {
        char name[] = "/tmp/prtool-fuzz-XXXXXX";
        close(mkstemp(name));
        return std::string(name);
    }();
    return path;
}

void read_as_tensor(const std::string& bytes) {
    std::ofstream(scratch(), std::ios::binary) << bytes;
    prtool::read_tensor(prtool::GuardedFile("/tmp", scratch().substr(5)), "embeddings");
}

void read_as_graph(const std::string& bytes) {
    std::ofstream(scratch(), std::ios::binary) << bytes;
    const prtool::GuardedFile file("/tmp", scratch().substr(5));
    prtool::check_graph(file, {"full.onnx", {}, {}}, {{"weights.bin", {4096, ""}}});
}

// The bytes are all of the manifest but its seal: no random change would get past it.
void read_as_manifest(const std::string& bytes) {
    const std::string sealed = bytes + ",\n \"seal\": \"" + prtool::sha256_text(bytes) + "\"\n}\n";
    const prtool::Manifest manifest = prtool::read_manifest(sealed, "prtool.json");
    // Whatever was accepted gives counts that a graph can take.
    for (const double ratio : {1.0, 0.6, 1e-6}) {
        std::int64_t before = manifest.prune.patches();
        for (const std::int64_t k : manifest.counts({ratio})) {
            if (k < 1 || k > before) std::abort();
            before = k;
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string bytes(reinterpret_cast<const char*>(data), size);
    for (const auto read : {read_as_manifest, read_as_tensor, read_as_graph}) {
        try {
            read(bytes);
        } catch (const prtool::Error&) {
        }
    }
    return 0;
}
