// Every error that the library raises on purpose: a status code and a message that says what was wrong,
// which value it had, what was possible, and what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace prtool {

// The numbers are those of prtool_status in prtool.h, and the names those of Python's exception tree.
enum class Status {
    ok = 0,
    config = 1,              // ConfigError
    keep = 2,                // KeepError
    shape = 3,               // ShapeError
    data = 4,                // DataError
    image = 5,               // ImageError
    bundle = 6,              // BundleError
    engine = 7,              // EngineError
    engine_unavailable = 8,  // EngineUnavailable
    storage = 9,             // StorageError
    memory = 10,             // out of memory
    internal = 11,           // a fault of the library itself
};

class Error : public std::runtime_error {
public:
    Error(Status status, const std::string& message) : std::runtime_error(message), status_(status) {}
    Status status() const noexcept { return status_; }

private:
    Status status_;
};

}  // namespace prtool
