// What a built engine depends on: everything that makes a stored one stale when it changes. The Python package has the same key.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

namespace prtool::trt {

inline constexpr const char* kNoDevice = "no device";

// As uname names them, and Python's platform module.
std::string this_system();
std::string this_architecture();

// Names one built engine; two builds with equal keys are interchangeable.
struct EngineKey {
    std::string onnx_sha256;  // as `onnx_digest` makes it
    std::string precision;    // the arithmetic asked for
    std::string profiles;     // the shape ranges, in words
    std::string builder;      // the builder's options, in words
    std::string library;      // what builds it, by the name of its Python module
    std::string library_version;
    std::string device = kNoDevice;  // the GPU; `kNoDevice` for a build without one, and so the next two
    std::string compute_capability = kNoDevice;
    std::string driver = kNoDevice;
    std::string system = this_system();
    std::string architecture = this_architecture();

    // The name of the engine's folder in a cache: 32 hexadecimal digits over every field.
    std::string digest() const;
    // Each field that differs, as "device changed from 'A' to 'B'".
    std::vector<std::string> changes_since(const EngineKey& earlier) const;
};

// Every field with its name, in the order of a record.
inline constexpr std::array<std::pair<const char*, std::string EngineKey::*>, 11> kKeyFields = {{
    {"onnx_sha256", &EngineKey::onnx_sha256},
    {"precision", &EngineKey::precision},
    {"profiles", &EngineKey::profiles},
    {"builder", &EngineKey::builder},
    {"library", &EngineKey::library},
    {"library_version", &EngineKey::library_version},
    {"device", &EngineKey::device},
    {"compute_capability", &EngineKey::compute_capability},
    {"driver", &EngineKey::driver},
    {"system", &EngineKey::system},
    {"architecture", &EngineKey::architecture},
}};

bool operator==(const EngineKey& one, const EngineKey& other);

// The SHA-256 of an ONNX file and of the files beside it that hold its weights, in hexadecimal.
// Throws Error(Status::bundle): a file cannot be read.
std::string onnx_digest(const std::string& path);

}  // namespace prtool::trt
