// One tensor of a file, and files that lie about their sizes.
#include <doctest/doctest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "errors.hpp"
#include "classes.hpp"

namespace {

// A file of a header and some float32 values; it is deleted with the object.
class File {
public:
    File(const std::string& header, const std::vector<float>& values, std::uint64_t declared = 0) {
        path_ = (std::filesystem::temp_directory_path() / ("prtool-unit-" + std::to_string(reinterpret_cast<std::uintptr_t>(this)) + ".safetensors")).string();
        const std::uint64_t length = declared != 0 ? declared : header.size();
        std::ofstream out(path_, std::ios::binary);
        out.write(reinterpret_cast<const char*>(&length), sizeof(length));
        out << header;
        out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
    }
    ~File() { std::remove(path_.c_str()); }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    prtool::GuardedFile open() const {
        const std::filesystem::path path(path_);
        return {path.parent_path().string(), path.filename().string()};
    }

private:
    std::string path_;
};

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"embeddings": {"dtype": ")" + dtype + R"(", "shape": )" + shape + R"(, "data_offsets": )" + offsets + "}}";
}

}  // namespace

TEST_CASE("a tensor is read") {
    const File file(entry("F32", "[2, 2]", "[0, 16]"), {1, 2, 3, 4});
    const prtool::Tensor tensor = prtool::read_tensor(file.open(), "embeddings");
    CHECK(tensor.shape == std::vector<std::int64_t>{2, 2});
    CHECK(tensor.values == std::vector<float>{1, 2, 3, 4});
}

TEST_CASE("lies are rejected") {
    const std::vector<float> values{1, 2, 3, 4};
    for (const auto& [dtype, shape, offsets] : std::vector<std::tuple<std::string, std::string, std::string>>{
             {"F64", "[2]", "[0, 16]"},
             {"F32", "[2, 2]", "[0, 12]"},
             {"F32", "[2, 2]", "[4, 20]"},
             {"F32", "[2, 2]", "[16, 0]"},
             {"F32", "[4294967296, 4294967296]", "[0, 0]"},
             {"F32", "[-1, 4]", "[0, 16]"},
             {"F32", "[2, 2]", "[0]"}}) {
        const File file(entry(dtype, shape, offsets), values);
        CHECK_THROWS_AS(prtool::read_tensor(file.open(), "embeddings"), prtool::Error);
    }
    const File other(entry("F32", "[4]", "[0, 16]"), values);
    CHECK_THROWS_WITH_AS(prtool::read_tensor(other.open(), "weights"), doctest::Contains("no tensor 'weights'"), prtool::Error);
    const File longer(entry("F32", "[4]", "[0, 16]"), values, std::uint64_t{1} << 62);
    CHECK_THROWS_WITH_AS(prtool::read_tensor(longer.open(), "embeddings"), doctest::Contains("longer than the file"), prtool::Error);
    CHECK_THROWS_AS(prtool::GuardedFile("/", "nowhere"), prtool::Error);
}
