// What ONNX Runtime's engines have in common: a session of one graph.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <string>
#include <vector>

#include "engine.hpp"
#include "errors.hpp"

namespace prtool {

// The settings of the Python package's sessions, so that both languages run alike.
Ort::SessionOptions session_options(int threads, bool spinning);

class OrtSession {
public:
    // Throws Error(Status::engine): the file is damaged, or ONNX Runtime rejects it.
    OrtSession(const std::string& path, const GraphSpec& spec, const Ort::SessionOptions& options);

    Ort::Session& get() { return session_; }

    // ONNX Runtime's reason as an error, with the sizes that it failed on.
    Error failure(const std::vector<TensorRef>& inputs, const Ort::Exception& cause) const;

private:
    std::string path_;
    Ort::Session session_;
};

// A tensor over the caller's memory. floats_in: the memory in which its floats lie; integers lie in the host's.
Ort::Value value_of(const TensorRef& tensor, const Ort::MemoryInfo& floats_in);

const Ort::MemoryInfo& host_memory();

}  // namespace prtool
