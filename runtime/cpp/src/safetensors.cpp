#include "safetensors.hpp"

#include <cstring>

#include "errors.hpp"
#include "json_reader.hpp"
#include "strict_json.hpp"

namespace prtool {

namespace {

constexpr std::int64_t kLengthBytes = 8;
// A header has a hundred bytes a tensor, and a bundle's files have a few tensors.
constexpr std::int64_t kMostHeaderBytes = std::int64_t{1} << 20;
constexpr auto kFloatBytes = static_cast<std::int64_t>(sizeof(float));

[[noreturn]] void reject(const GuardedFile& file, const std::string& why) {
    throw Error(Status::bundle, file.path() + " cannot be read (" + why + "); export the bundle again");
}

void read_exactly(const GuardedFile& file, std::int64_t offset, void* out, std::size_t count) {
    if (file.read_at(offset, out, count) != count) reject(file, "it ends before its data do");
}

// Bytes of the header, which the file begins with as a little-endian number; so is every machine that this library is built for.
std::int64_t header_bytes(const GuardedFile& file) {
    std::uint64_t length = 0;
    if (file.size() < kLengthBytes) reject(file, "it has no header");
    read_exactly(file, 0, &length, sizeof(length));
    if (length > static_cast<std::uint64_t>(file.size() - kLengthBytes)) reject(file, "its header is longer than the file");
    if (length > static_cast<std::uint64_t>(kMostHeaderBytes)) reject(file, "its header has more than " + std::to_string(kMostHeaderBytes) + " bytes");
    return static_cast<std::int64_t>(length);
}

// Values of a tensor of that shape. Divided rather than multiplied: a product of hostile sizes would overflow.
std::int64_t count_of(const GuardedFile& file, const std::vector<std::int64_t>& shape) {
    std::int64_t count = 1;
    for (const std::int64_t axis : shape) {
        if (axis != 0 && count > file.size() / axis) reject(file, "a tensor is larger than the file");
        count *= axis;
    }
    return count;
}

}  // namespace

Tensor read_tensor(const GuardedFile& file, const std::string& name) {
    const std::int64_t length = header_bytes(file);
    std::string text(static_cast<std::size_t>(length), '\0');
    read_exactly(file, kLengthBytes, text.data(), text.size());
    const nlohmann::json header = parse_strictly(text, file.path());
    if (!header.is_object() || !header.contains(name)) reject(file, "it has no tensor '" + name + "'");
    const JsonReader json(header.at(name), file.path() + ": " + name);
    json.fields({"dtype", "shape", "data_offsets"});
    if (json.at("dtype").text() != "F32") reject(file, "tensor '" + name + "' is not float32");

    Tensor tensor;
    const std::int64_t most = file.size() - kLengthBytes - length;
    for (const JsonReader& axis : json.at("shape").items()) tensor.shape.push_back(axis.whole(0, most));
    const std::int64_t count = count_of(file, tensor.shape);
    const std::vector<JsonReader> offsets = json.at("data_offsets").items(2);
    const std::int64_t begin = offsets[0].whole(0, most);
    const std::int64_t end = offsets[1].whole(begin, most);
    if ((end - begin) % kFloatBytes != 0 || (end - begin) / kFloatBytes != count) reject(file, "tensor '" + name + "' has another size than its shape");
    tensor.values.resize(static_cast<std::size_t>(count));
    read_exactly(file, kLengthBytes + length + begin, tensor.values.data(), static_cast<std::size_t>(end - begin));
    return tensor;
}

}  // namespace prtool
