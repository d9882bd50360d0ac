#include "safetensors.hpp"

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "json_reader.hpp"

namespace prtool {

namespace {

constexpr std::size_t kLengthBytes = 8;

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
    throw Error(Status::bundle, path + " cannot be read (" + why + "); export the bundle again");
}

std::string read_all(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file.good() && !file.eof()) refuse(path, "the file cannot be opened");
    return bytes;
}

}  // namespace

Tensor read_tensor(const std::string& path, const std::string& name) {
    const std::string bytes = read_all(path);
    std::uint64_t length = 0;
    if (bytes.size() < kLengthBytes) refuse(path, "it has no header");
    // The format is little-endian, and so is every machine that this library is built for.
    std::memcpy(&length, bytes.data(), kLengthBytes);
    if (length > bytes.size() - kLengthBytes) refuse(path, "its header is longer than the file");
    const nlohmann::json header = nlohmann::json::parse(bytes.substr(kLengthBytes, length), nullptr, false);
    if (!header.is_object() || !header.contains(name)) refuse(path, "it has no tensor '" + name + "'");
    const JsonReader json(header.at(name), path + ": " + name);
    json.fields({"dtype", "shape", "data_offsets"});
    if (json.at("dtype").text() != "F32") refuse(path, "tensor '" + name + "' is not float32");

    Tensor tensor;
    std::int64_t count = 1;
    const auto most = static_cast<std::int64_t>(bytes.size() - kLengthBytes - length);
    for (const JsonReader& axis : json.at("shape").items()) {
        tensor.shape.push_back(axis.whole(0, most));
        // Divided rather than multiplied: a product of hostile sizes would overflow.
        if (tensor.shape.back() != 0 && count > most / tensor.shape.back()) refuse(path, "tensor '" + name + "' is larger than the file");
        count *= tensor.shape.back();
    }
    const std::vector<JsonReader> offsets = json.at("data_offsets").items(2);
    const std::int64_t begin = offsets[0].whole(0, most);
    const std::int64_t end = offsets[1].whole(begin, most);
    if ((end - begin) / static_cast<std::int64_t>(sizeof(float)) != count || (end - begin) % static_cast<std::int64_t>(sizeof(float)) != 0) {
        refuse(path, "tensor '" + name + "' has another size than its shape");
    }
    tensor.values.resize(static_cast<std::size_t>(count));
    if (count > 0) std::memcpy(tensor.values.data(), bytes.data() + kLengthBytes + length + begin, static_cast<std::size_t>(end - begin));
    return tensor;
}

}  // namespace prtool
