// consumer BUNDLE IMAGE...: the best class of each image.
#include <iostream>
#include <prtool.hpp>

int main(int count, char** words) try {
    if (count < 3) throw std::invalid_argument("usage: consumer BUNDLE IMAGE...");
    const prtool::Encoder encoder(words[1]);
    const std::vector<std::string> paths(words + 2, words + count);
    for (const auto& found : encoder.classify_files(paths, prtool::Keep::ratio(0.6), 1)) std::cout << found[0].name << " " << found[0].probability << "\n";
    return 0;
} catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
}
