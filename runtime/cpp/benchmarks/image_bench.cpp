// Times decoding and preparing in C++, one image for each path that comes on standard input; image_bench.py drives it.
#include <chrono>
#include <iostream>
#include <string>
#include <vector>

#include "image/decode.hpp"
#include "image/prepare.hpp"

int main() {
    using Clock = std::chrono::steady_clock;
    prtool::Preprocess spec;  // as OpenAI's CLIP models ask for
    spec.height = spec.width = 224;
    spec.mean = {0.48145466, 0.4578275, 0.40821073};
    spec.std = {0.26862954, 0.26130258, 0.27577711};
    std::vector<float> out(3 * 224 * 224);
    for (std::string path; std::getline(std::cin, path);) {
        const Clock::time_point start = Clock::now();
        const prtool::Rgb image = prtool::decode_file(path);
        const Clock::time_point decoded = Clock::now();
        prtool::prepare({image.pixels.data(), image.width, image.height, 3 * image.width}, spec, out.data());
        const Clock::time_point end = Clock::now();
        const auto ms = [](Clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); };
        std::cout << ms(decoded - start) << " " << ms(end - decoded) << std::endl;
    }
}
