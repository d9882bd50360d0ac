#include "graph_file.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "errors.hpp"
#include "protobuf.hpp"
#include "signature.hpp"

namespace prtool {

namespace {

constexpr std::int64_t kOpset = 20;
// OpenVINO's time grows with the square of a chain's length.
constexpr std::int64_t kMostNodes = 10'000;
constexpr std::int64_t kMostValues = std::int64_t{1} << 20;
constexpr std::size_t kMostAxes = 64;
constexpr std::int64_t kExternal = 1;  // onnx.TensorProto.DataLocation
constexpr std::size_t kMostDigits = 16;
constexpr const char* kWeightsName = "weights.bin";
constexpr std::int64_t kWeightsAlignment = 64;
constexpr std::array<const char*, 3> kEntryKeys = {"location", "offset", "length"};

struct ElementKind {
    const char* name;  // numpy's
    std::int64_t bytes;
    std::uint64_t field;  // of values that are not in raw_data
};

constexpr std::uint64_t kFloatData = 4, kInt32Data = 5, kInt64Data = 7;

// By the number of onnx.TensorProto.DataType.
const std::map<std::int64_t, ElementKind>& element_kinds() {
    static const std::map<std::int64_t, ElementKind> known = {
        {1, {"float32", 4, kFloatData}}, {2, {"uint8", 1, kInt32Data}}, {3, {"int8", 1, kInt32Data}},     {6, {"int32", 4, kInt32Data}},
        {7, {"int64", 8, kInt64Data}},   {9, {"bool", 1, kInt32Data}},  {10, {"float16", 2, kInt32Data}}, {16, {"bfloat16", 2, kInt32Data}}};
    return known;
}

// The fields of onnx.proto by number; what is not here is rejected.
constexpr FieldKind kNumber = FieldKind::number, kBytes = FieldKind::bytes, kFloat = FieldKind::floating;
const MessageRules kModel = {{1, kNumber}, {2, kBytes}, {3, kBytes}, {4, kBytes}, {5, kNumber}, {6, kBytes}, {7, kBytes}, {8, kBytes, true}, {14, kBytes, true}};
const MessageRules kOpsetId = {{1, kBytes}, {2, kNumber}};
const MessageRules kGraph = {{1, kBytes, true},  {2, kBytes},        {5, kBytes, true},  {10, kBytes},
                             {11, kBytes, true}, {12, kBytes, true}, {13, kBytes, true}, {16, kBytes, true}};
const MessageRules kNode = {{1, kBytes, true}, {2, kBytes, true}, {3, kBytes}, {4, kBytes}, {5, kBytes, true}, {6, kBytes}, {7, kBytes}, {9, kBytes, true}};
const MessageRules kAttribute = {{1, kBytes},       {2, kFloat},        {3, kNumber},      {4, kBytes},  {5, kBytes},
                                 {7, kFloat, true}, {8, kNumber, true}, {9, kBytes, true}, {13, kBytes}, {20, kNumber}};
const MessageRules kTensor = {{1, kNumber, true}, {2, kNumber}, {4, kFloat, true}, {5, kNumber, true},  {7, kNumber, true}, {8, kBytes},
                              {9, kBytes},        {12, kBytes}, {13, kBytes, true}, {14, kNumber}, {16, kBytes, true}};
const MessageRules kEntry = {{1, kBytes}, {2, kBytes}};
const MessageRules kValue = {{1, kBytes}, {2, kBytes}, {3, kBytes}, {4, kBytes, true}};
const MessageRules kType = {{1, kBytes}, {6, kBytes}};
const MessageRules kTensorType = {{1, kNumber}, {2, kBytes}};
const MessageRules kShape = {{1, kBytes, true}};
const MessageRules kAxis = {{1, kNumber}, {2, kBytes}, {3, kBytes}};

constexpr std::int64_t kEndless = std::numeric_limits<std::int64_t>::max();

// Bytes that a tensor of that shape needs; kEndless beyond 64 bits.
std::int64_t bytes_of(const std::vector<std::int64_t>& shape, std::int64_t each) {
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
    std::int64_t count = each;
    for (const std::int64_t axis : shape) {
        if (count > kEndless / axis) return kEndless;
        count *= axis;
    }
    return count;
}

// A number of bytes in decimal digits.
std::optional<std::int64_t> number_of(const std::string& text) {
    if (text.empty() || text.size() > kMostDigits || text.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
    return std::stoll(text);
}

// What a tensor says of itself.
struct TensorFacts {
    std::string name = "?";
    std::int64_t dtype = 0;
    std::vector<std::int64_t> shape;
    std::optional<std::int64_t> raw;               // bytes of raw_data
    std::map<std::uint64_t, std::int64_t> values;  // their number, by the field that has them
    std::int64_t place = 0;
    std::vector<std::string> entries;  // of its external location: the values of kEntryKeys
};

// One walk; the methods take the range of bytes of one message.
class Walk {
public:
    Walk(const GuardedFile& file, const GraphSpec& spec, const std::map<std::string, FileDigest>& files)
        : file_(file), spec_(spec), files_(files), folder_(spec.file.substr(0, spec.file.rfind('/') + 1)), reader_(file) {}

    void check() {
        std::optional<ByteRange> found;
        std::size_t opsets = 0;
        reader_.message({0, file_.size()}, kModel, "the model", [&](std::uint64_t field, ByteRange range) {
            if (field == 7) found = range;
            if (field == 8) opset(range);
            opsets += field == 8 ? 1 : 0;
        });
        if (opsets != 1) reject("uses " + std::to_string(opsets) + " operator sets, but only one is read");
        if (!found) reject("holds no graph");
        graph(*found);
    }

private:
    void graph(ByteRange range) {
        std::vector<TensorSpec> inputs, outputs;
        std::map<std::uint64_t, std::int64_t> counts;
        reader_.message(range, kGraph, "the graph", [&](std::uint64_t field, ByteRange inside) {
            if (++counts[field] > kMostNodes) reject("holds more than " + std::to_string(kMostNodes) + " nodes or values");
            if (field == 1) node(inside);
            if (field == 5) tensor(inside);
            if (field == 13) value(inside);
            if (field == 11) inputs.push_back(value(inside));
            if (field == 12) outputs.push_back(value(inside));
            if (std::max(inputs.size(), outputs.size()) > kMostAxes) reject("has more than " + std::to_string(kMostAxes) + " inputs or outputs");
        });
        check_values("inputs", inputs, spec_.inputs);
        check_values("outputs", outputs, spec_.outputs);
    }

    void opset(ByteRange range) {
        std::string domain;
        std::int64_t version = 0;
        reader_.message(range, kOpsetId, "an operator set", [&](std::uint64_t field, ByteRange inside) {
            if (field == 1) domain = reader_.text(inside);
            if (field == 2) version = inside.begin;
        });
        if (!domain.empty() || version != kOpset) {
            reject("uses the operator set " + std::to_string(version) + " of '" + shortened(domain) + "', but only set " + std::to_string(kOpset) +
                   " of the standard domain is read");
        }
    }

    void node(ByteRange range) {
        std::string name, domain;
        reader_.message(range, kNode, "a node", [&](std::uint64_t field, ByteRange inside) {
            if (field == 4) name = reader_.text(inside);
            if (field == 5) attribute(inside);
            if (field == 7) domain = reader_.text(inside);
        });
        if (domain.empty() && std::binary_search(graph_operators().begin(), graph_operators().end(), name)) return;
        reject("uses the operator '" + shortened(domain.empty() ? name : domain + ":" + name) + "', which the exporter never writes");
    }

    void attribute(ByteRange range) {
        reader_.message(range, kAttribute, "an attribute", [this](std::uint64_t field, ByteRange inside) {
            if (field == 5) tensor(inside);
        });
    }

    // Holds the values of a tensor against its dtype and shape, wherever they lie.
    void tensor(ByteRange range) {
        const TensorFacts facts = facts_of(range);
        const std::string name = "the tensor '" + shortened(facts.name) + "'";
        const auto found = element_kinds().find(facts.dtype);
        if (found == element_kinds().end() || std::any_of(facts.shape.begin(), facts.shape.end(), [](std::int64_t axis) { return axis < 0; })) {
            reject("holds " + name + " of type " + std::to_string(facts.dtype) + " and shape " + listed(facts.shape) + ", which the exporter never writes");
        }
        const ElementKind& kind = found->second;
        const bool outside = facts.place == kExternal;
        const int places = (outside ? 1 : 0) + (facts.raw ? 1 : 0) + (facts.values.empty() ? 0 : 1);
        const std::size_t due = facts.values.count(kind.field);
        if (places > 1 || facts.values.size() != due || facts.entries.empty() == outside || (facts.place != 0 && !outside)) {
            reject("keeps the values of " + name + " in several places, or where its type has none");
        }
        const std::int64_t needed = bytes_of(facts.shape, kind.bytes);
        const std::int64_t inside = due > 0 ? facts.values.at(kind.field) * kind.bytes : facts.raw.value_or(0);
        const std::int64_t held = outside ? external_bytes(facts) : inside;
        if (held != needed) reject("holds " + std::to_string(held) + " bytes of " + name + ", but its type and shape need " + std::to_string(needed));
    }

    TensorFacts facts_of(ByteRange range) {
        TensorFacts facts;
        reader_.message(range, kTensor, "a tensor", [&](std::uint64_t field, ByteRange inside) {
            if (field == 1) facts.shape.push_back(inside.begin);
            if (field == 2) facts.dtype = inside.begin;
            if (field == kFloatData) facts.values[field] += (inside.end - inside.begin) / 4;
            if (field == kInt32Data || field == kInt64Data) ++facts.values[field];
            if (field == 8) facts.name = reader_.text(inside);
            if (field == 9) facts.raw = inside.end - inside.begin;
            if (field == 13) entry(inside, facts.entries);
            if (field == 14) facts.place = inside.begin;
            const bool many = std::any_of(facts.values.begin(), facts.values.end(), [](const auto& one) { return one.second > kMostValues; });
            if (many || facts.shape.size() > kMostAxes) {
                reject("holds a tensor of more than " + std::to_string(kMostAxes) + " axes, or more than " + std::to_string(kMostValues) + " values one by one");
            }
        });
        return facts;
    }

    void entry(ByteRange range, std::vector<std::string>& entries) {
        std::string key, text;
        reader_.message(range, kEntry, "an external location", [&](std::uint64_t field, ByteRange inside) { (field == 1 ? key : text) = reader_.text(inside); });
        if (entries.size() == kEntryKeys.size() || key != kEntryKeys[entries.size()]) {
            reject("has '" + shortened(key) + "' in an external location, but it must hold location, offset and length, in this order");
        }
        entries.push_back(text);
    }

    // The bytes of a tensor in the weights file of the graph's folder.
    std::int64_t external_bytes(const TensorFacts& facts) {
        const std::string name = folder_ + kWeightsName, what = "keeps the tensor '" + shortened(facts.name) + "' ";
        const auto file = files_.find(name);
        if (facts.entries.size() != kEntryKeys.size() || facts.entries[0] != kWeightsName || file == files_.end()) {
            reject(what + "in '" + shortened(facts.entries[0]) + "', but only " + name + " holds weights, if the manifest lists it");
        }
        const std::optional<std::int64_t> offset = number_of(facts.entries[1]), length = number_of(facts.entries[2]);
        if (!offset || !length) reject(what + "at a place of " + name + " that is not a number of bytes");
        if (*offset % kWeightsAlignment != 0 || *offset + *length > file->second.size) {
            reject(what + "at bytes " + std::to_string(*offset) + " to " + std::to_string(*offset + *length) + " of " + name + ", which has " +
                   std::to_string(file->second.size) + " and holds tensors at multiples of " + std::to_string(kWeightsAlignment));
        }
        return *length;
    }

    // The name, dtype and axes of an input, output or inner value.
    TensorSpec value(ByteRange range) {
        TensorSpec spec{"", "?", {}};
        reader_.message(range, kValue, "a value", [&](std::uint64_t field, ByteRange inside) {
            if (field == 1) spec.name = reader_.text(inside);
            if (field == 2) type(inside, spec);
        });
        return spec;
    }

    void type(ByteRange range, TensorSpec& spec) {
        reader_.message(range, kType, "a type", [&](std::uint64_t field, ByteRange tensor_type) {
            if (field != 1) return;
            reader_.message(tensor_type, kTensorType, "a tensor's type", [&](std::uint64_t part, ByteRange inside) {
                const auto kind = part == 1 ? element_kinds().find(inside.begin) : element_kinds().end();
                if (kind != element_kinds().end()) spec.dtype = kind->second.name;
                if (part == 2) axes(inside, spec);
            });
        });
    }

    void axes(ByteRange range, TensorSpec& spec) {
        reader_.message(range, kShape, "a shape", [&](std::uint64_t, ByteRange axis) {
            if (spec.shape.size() >= kMostAxes) reject("has a value of more than " + std::to_string(kMostAxes) + " axes");
            spec.shape.emplace_back("?");
            reader_.message(axis, kAxis, "an axis", [&](std::uint64_t field, ByteRange inside) {
                if (field == 1) spec.shape.back() = inside.begin;
                if (field == 2) spec.shape.back() = reader_.text(inside);
            });
        });
    }

    void check_values(const char* what, const std::vector<TensorSpec>& found, const std::vector<TensorSpec>& wanted) const {
        if (found != wanted) reject(std::string("has the ") + what + " " + signature_text(found) + ", but the manifest says " + signature_text(wanted));
    }

    [[noreturn]] void reject(const std::string& reason) const {
        throw Error(Status::bundle, file_.path() + " " + reason + "; do not use this bundle, or export it again");
    }

    const GuardedFile& file_;
    const GraphSpec& spec_;
    const std::map<std::string, FileDigest>& files_;
    std::string folder_;  // of the graph in the bundle, with "/" at its end; "" for the bundle's own
    MessageReader reader_;
};

}  // namespace

const std::vector<std::string>& graph_operators() {
    static const std::vector<std::string> known = {
        "Add", "And", "ArgMax", "Cast", "Clip", "Concat", "Conv", "CumSum", "DequantizeLinear", "Div", "Equal",
        "Expand", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "Identity", "IsNaN", "LayerNormalization",
        "Log", "LpNormalization", "MatMul", "Max", "Mul", "Neg", "Not", "Pad", "Pow", "QuantizeLinear", "Range",
        "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid",
        "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "TopK", "Transpose", "Unsqueeze", "Where",
    };
    return known;
}

void check_graph(const GuardedFile& file, const GraphSpec& spec, const std::map<std::string, FileDigest>& files) {
    try {
        Walk(file, spec, files).check();
    } catch (const MalformedMessage& cause) {
        throw Error(Status::bundle, file.path() + " is not a readable ONNX file (" + cause.what() + "); copy or export the bundle again");
    }
}

}  // namespace prtool
