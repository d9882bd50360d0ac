#include "engines/trt/build.hpp"

#include <algorithm>
#include <array>
#include <system_error>

#include "engines/trt/files.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace prtool::trt::PRTOOL_TRT_LIBRARY {

namespace {

namespace fs = std::filesystem;
using nvinfer1::OptProfileSelector;

constexpr std::size_t kDigestBytes = 32;
// NetworkDefinitionCreationFlag::kSTRONGLY_TYPED, whose name TensorRT 11, which knows no other networks, calls deprecated.
constexpr nvinfer1::NetworkDefinitionCreationFlags kStronglyTyped = 1U << 0;
#if defined(PRTOOL_TRT_RTX)
// Kernels are chosen when the engine runs first, so the builder has nothing to remember.
constexpr bool kTimesKernels = false;
#else
constexpr bool kTimesKernels = true;
#endif

struct Selected {
    OptProfileSelector selector;
    std::int64_t ShapeRange::*value;
};
constexpr std::array<Selected, 3> kSelected = {{
    {OptProfileSelector::kMIN, &ShapeRange::least},
    {OptProfileSelector::kOPT, &ShapeRange::usual},
    {OptProfileSelector::kMAX, &ShapeRange::most},
}};

std::string parser_error(const nvonnxparser::IParserError& error) {
    const std::string node = error.nodeName(), kind = error.nodeOperator();
    return (node.empty() && kind.empty() ? "" : "node '" + node + "' (" + kind + "): ") + error.desc();
}

// Its names must be the declared ones, in any order.
void check_inputs(const Library& library, const Order& order, const nvinfer1::INetworkDefinition& network) {
    std::vector<std::string> found, declared;
    for (int place = 0; place < network.getNbInputs(); ++place) found.emplace_back(network.getInput(place)->getName());
    for (const TensorSpec& spec : order.inputs) declared.push_back(spec.name);
    std::sort(found.begin(), found.end());
    std::sort(declared.begin(), declared.end());
    if (found == declared) return;
    throw Error(Status::engine, std::string(library.title()) + " cannot use " + order.path + ": it takes " + (found.empty() ? "nothing" : joined(found)) +
                                    ", but it was declared to take " + joined(declared) + "; copy or export the bundle again");
}

// A shape that is no declared one, or more axes than were declared, would have no range.
void check_axes(const Library& library, const Order& order, const nvinfer1::ITensor& tensor, const TensorSpec& spec) {
    const auto axes = static_cast<std::size_t>(tensor.getDimensions().nbDims);
    if (axes == spec.shape.size() && (!tensor.isShapeTensor() || is_shape_input(spec))) return;
    const std::string found = std::to_string(axes) + " axes" + (tensor.isShapeTensor() ? " and is itself a shape" : "");
    throw Error(Status::engine, std::string(library.title()) + " cannot use " + order.path + ": its input " + spec.name + " has " + found +
                                    ", but it was declared otherwise; export the bundle again");
}

void parse(Library& library, const Order& order, nvonnxparser::IParser& parser, const nvinfer1::INetworkDefinition& network) {
    if (!parser.parseFromFile(order.path.c_str(), static_cast<int>(nvinfer1::ILogger::Severity::kERROR))) {
        std::string reasons;
        for (int place = 0; place < parser.getNbErrors(); ++place) reasons += (place == 0 ? "" : "; ") + parser_error(*parser.getError(place));
        throw Error(Status::engine, std::string(library.title()) + " cannot load " + order.path + ": " +
                                        (reasons.empty() ? library.messages().take() : reasons) + "; copy or export the bundle again");
    }
    check_inputs(library, order, network);
}

void configure(nvinfer1::IBuilderConfig& config, const BuildOptions& options) {
    config.clearFlag(nvinfer1::BuilderFlag::kTF32);
    config.setBuilderOptimizationLevel(options.level);
    if (options.workspace_mib > 0) config.setMemoryPoolLimit(nvinfer1::MemoryPoolType::kWORKSPACE, static_cast<std::size_t>(options.workspace_mib) << 20);
    if (options.strip_weights) config.setFlag(nvinfer1::BuilderFlag::kSTRIP_PLAN);
#if !defined(PRTOOL_TRT_RTX)  // it has no lean runtime, and compiles for the GPU when an engine runs first
    if (options.version_compatible) config.setFlag(nvinfer1::BuilderFlag::kVERSION_COMPATIBLE);
    if (options.hardware_compatible) config.setHardwareCompatibilityLevel(nvinfer1::HardwareCompatibilityLevel::kAMPERE_PLUS);
#endif
}

nvinfer1::Dims dimensions(const TensorSpec& spec, const Profile& profile, std::int64_t ShapeRange::*value) {
    nvinfer1::Dims shape{};
    for (const auto& axis : spec.shape) {
        const auto* const name = std::get_if<std::string>(&axis);
        shape.d[shape.nbDims++] = name != nullptr ? profile.at(*name).*value : std::get<std::int64_t>(axis);
    }
    return shape;
}

bool set_range(nvinfer1::IOptimizationProfile& made, const nvinfer1::ITensor& tensor, const TensorSpec& spec, const Profile& profile) {
    const bool varies = std::any_of(spec.shape.begin(), spec.shape.end(), [](const auto& axis) { return std::holds_alternative<std::string>(axis); });
    return std::all_of(kSelected.begin(), kSelected.end(), [&](const Selected& selected) {
        if (tensor.isShapeTensor()) {
            const auto count = static_cast<std::size_t>(tensor.getDimensions().d[0]);
            const std::vector<std::int64_t> values(count, profile.at(spec.name).*selected.value);
            return made.setShapeValuesV2(spec.name.c_str(), selected.selector, values.data(), static_cast<std::int32_t>(count));
        }
        return !varies || made.setDimensions(spec.name.c_str(), selected.selector, dimensions(spec, profile, selected.value));
    });
}

struct Builder {
    Library& library;
    nvinfer1::IBuilder& builder;
    nvinfer1::IBuilderConfig& config;
};

void add_profile(const Builder& with, const nvinfer1::INetworkDefinition& network, const Order& order, const Profile& profile) {
    nvinfer1::IOptimizationProfile* const made = with.builder.createOptimizationProfile();
    bool taken = made != nullptr;
    for (int place = 0; taken && place < network.getNbInputs(); ++place) {
        const nvinfer1::ITensor& tensor = *network.getInput(place);
        const auto same = [&tensor](const TensorSpec& one) { return one.name == tensor.getName(); };
        const auto spec = std::find_if(order.inputs.begin(), order.inputs.end(), same);
        check_axes(with.library, order, tensor, *spec);
        taken = set_range(*made, tensor, *spec, profile);
    }
    if (!taken || with.config.addOptimizationProfile(made) < 0) {
        throw with.library.failure(std::string(with.library.title()) + " refuses the profile " + profiles_text({profile}));
    }
}

// What earlier builds measured; a damaged file is as none: kernels are timed again, and the file is replaced.
std::string read_timings(const fs::path& path) {
    std::string content;
    try {
        content = read_file(path);
    } catch (const std::system_error& cause) {
        if (cause.code() == std::errc::no_such_file_or_directory || cause.code() == std::errc::not_a_directory) return "";
        throw Error(Status::storage, "cannot read " + path.string() + " (" + cause.what() + "); remove it");
    }
    if (content.size() < kDigestBytes || sha256_bytes(std::string_view(content).substr(kDigestBytes)) != content.substr(0, kDigestBytes)) return "";
    return content.substr(kDigestBytes);
}

std::unique_ptr<nvinfer1::ITimingCache> set_timings(const Builder& with, const fs::path& path) {
    const std::string timings = read_timings(path);
    std::unique_ptr<nvinfer1::ITimingCache> cache(with.config.createTimingCache(timings.data(), timings.size()));
    if (cache == nullptr || !with.config.setTimingCache(*cache, false)) {
        throw with.library.failure(std::string(with.library.title()) + " refuses the timings in " + path.string() + "; remove the file");
    }
    return cache;
}

void keep_timings(const nvinfer1::ITimingCache& cache, const fs::path& path) {
    const std::unique_ptr<nvinfer1::IHostMemory> serialised(cache.serialize());
    if (serialised == nullptr) return;  // they only save time
    const std::string timings(static_cast<const char*>(serialised->data()), serialised->size());
    replace_file(path, sha256_bytes(timings) + timings);
}

// A GPU's name as a file's: every ASCII character but letters and digits is a "-".
std::string plain(std::string name) {
    for (char& character : name) {
        const bool kept = (character >= '0' && character <= '9') || (character >= 'A' && character <= 'Z') || (character >= 'a' && character <= 'z') ||
                          static_cast<unsigned char>(character) >= 0x80;
        if (!kept) character = '-';
    }
    return name;
}

template <typename Made>
std::unique_ptr<Made> made(Made* object, Library& library, const std::string& problem) {
    if (object == nullptr) throw library.failure(std::string(library.title()) + " " + problem);
    return std::unique_ptr<Made>(object);
}

}  // namespace

EngineKey key_of(const Library& library, const Order& order, const Target& target) {
    std::error_code unknown;
    if (!fs::is_regular_file(order.path, unknown)) throw Error(Status::engine, order.path + " is missing; copy the whole bundle again, or export it again");
    EngineKey key;
    key.onnx_sha256 = onnx_digest(order.path);
    key.precision = order.precision;
    key.profiles = profiles_text(order.recipe.profiles);
    key.builder = builder_text(order.recipe.options);
    key.library = library.module();
    key.library_version = library.version();
    key.device = target.device;
    key.compute_capability = target.compute_capability;
    key.driver = target.driver;
    return key;
}

std::string build_plan(Library& library, const Order& order, const fs::path& timing_file) {
    const BuildOptions& options = order.recipe.options;
    const auto builder = library.builder();
    const auto network = made(builder->createNetworkV2(kStronglyTyped), library, "makes no network");
    // The network may refer to weights that the parser holds.
    const auto parser = library.parser(*network);
    parse(library, order, *parser, *network);
    const auto config = made(builder->createBuilderConfig(), library, "makes no configuration of a build");
    configure(*config, options);
    const Builder with{library, *builder, *config};
    for (const Profile& profile : order.recipe.profiles) {
        if (!profile.empty()) add_profile(with, *network, order, profile);
    }
    std::unique_ptr<nvinfer1::ITimingCache> timings;
    if (kTimesKernels && options.timing_cache) timings = set_timings(with, timing_file);
    const auto plan = made(builder->buildSerializedNetwork(*network, *config), library, "cannot build " + order.path);
    if (timings != nullptr) keep_timings(*timings, timing_file);
    return {static_cast<const char*>(plan->data()), plan->size()};
}

CachedEngine obtain_plan(Library& library, const Order& order, const Target& target, const EngineCache& cache) {
    const std::string file = std::string(library.engine()) + "-" + library.version() + "-" + plain(target.device) + ".timing";
    const auto build = [&] { return build_plan(library, order, cache.timing_folder() / file); };
    return cache.obtain(key_of(library, order, target), build, order.path);
}

}  // namespace prtool::trt::PRTOOL_TRT_LIBRARY
