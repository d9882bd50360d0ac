#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <iostream>

int main(int count, char** words) {
    const char* program = std::strrchr(words[0], '/');
    if (program != nullptr && std::strcmp(program, "/prtool-api") == 0 && std::getenv("PRTOOL_TEST_BUNDLE") == nullptr) {
        std::cout << "skipped: PRTOOL_TEST_BUNDLE names no bundle; tests/runtime/test_cpp.py makes one and runs this\n";
        return 77;
    }
    return doctest::Context(count, words).run();
}
