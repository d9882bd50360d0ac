// Decodes and prepares the images whose paths come on standard input, one a line, for a comparison with Python.
//
// For each image it writes one line, and raw bytes behind it:
//   image WIDTH HEIGHT      then WIDTH x HEIGHT x 3 bytes of RGB, and (3, height, width) float32 as the encoder takes it
//   error STATUS MESSAGE    then nothing
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "errors.hpp"
#include "image/decode.hpp"
#include "image/prepare.hpp"

namespace {

using namespace prtool;

constexpr int kArguments = 15;
constexpr const char* kUsage =
    "usage: prtool-image-probe HEIGHT WIDTH MEAN MEAN MEAN STD STD STD bicubic|bilinear|nearest shortest|longest|squash FILL "
    "nearest|floor RATIO exact|scaled";

Preprocess parse(char** arguments) {
    Preprocess spec;
    spec.height = std::atoi(arguments[1]);
    spec.width = std::atoi(arguments[2]);
    for (std::size_t i = 0; i < 3; ++i) {
        spec.mean[i] = std::strtod(arguments[3 + i], nullptr);
        spec.std[i] = std::strtod(arguments[6 + i], nullptr);
    }
    const std::string interpolation = arguments[9], mode = arguments[10];
    if (interpolation == "bilinear") spec.interpolation = Interpolation::bilinear;
    if (interpolation == "nearest") spec.interpolation = Interpolation::nearest;
    if (mode == "longest") spec.resize_mode = ResizeMode::longest;
    if (mode == "squash") spec.resize_mode = ResizeMode::squash;
    spec.fill = std::atoi(arguments[11]);
    if (std::string(arguments[12]) == "floor") spec.crop_rounding = CropRounding::floor;
    spec.resize_ratio = std::strtod(arguments[13], nullptr);
    return spec;
}

void answer(const std::string& path, const Preprocess& spec, const LeastSize& least, std::vector<float>& prepared) {
    try {
        const Rgb image = decode_file(path, least);
        prepare({image.pixels.data(), image.width, image.height, 3 * image.width, image.margins}, spec, prepared.data());
        std::cout << "image " << image.width << " " << image.height << "\n";
        std::cout.write(reinterpret_cast<const char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
        std::cout.write(reinterpret_cast<const char*>(prepared.data()),
                        static_cast<std::streamsize>(prepared.size() * sizeof(float)));
    } catch (const Error& error) {
        std::cout << "error " << static_cast<int>(error.status()) << " " << error.what() << "\n";
    }
    std::cout.flush();
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != kArguments) {
        std::cerr << kUsage << "\n";
        return 2;
    }
    const Preprocess spec = parse(argv);
    std::vector<float> prepared(3 * static_cast<std::size_t>(spec.height) * static_cast<std::size_t>(spec.width));
    LeastSize least;
    if (std::string(argv[14]) == "scaled") least = [&spec](std::int64_t width, std::int64_t height) { return least_size(width, height, spec); };
    for (std::string path; std::getline(std::cin, path);) answer(path, spec, least, prepared);
    return 0;
}
