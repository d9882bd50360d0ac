#include "sha256.hpp"

#include <openssl/evp.h>

#include <array>
#include <fstream>
#include <memory>
#include <vector>

#include "errors.hpp"

namespace prtool {

namespace {

constexpr std::size_t kChunk = std::size_t{1} << 20;

void require(int done) {
    if (done != 1) throw Error(Status::internal, "OpenSSL cannot compute SHA-256; check the installation of libcrypto");
}

std::string hexadecimal(std::string_view digest) {
    std::string text;
    for (const char byte : digest) {
        text += "0123456789abcdef"[static_cast<unsigned char>(byte) >> 4];
        text += "0123456789abcdef"[static_cast<unsigned char>(byte) & 15];
    }
    return text;
}

}  // namespace

std::string sha256_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    require(context != nullptr ? EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) : 0);
    std::vector<char> chunk(kChunk);
    while (file.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || file.gcount() > 0) {
        require(EVP_DigestUpdate(context.get(), chunk.data(), static_cast<std::size_t>(file.gcount())));
    }
    if (!file.eof()) throw Error(Status::bundle, path + " cannot be read; copy or export the bundle again");
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int length = 0;
    require(EVP_DigestFinal_ex(context.get(), digest.data(), &length));
    return hexadecimal({reinterpret_cast<const char*>(digest.data()), length});
}

std::string sha256_bytes(std::string_view content) {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int length = 0;
    require(EVP_Digest(content.data(), content.size(), digest.data(), &length, EVP_sha256(), nullptr));
    return {reinterpret_cast<const char*>(digest.data()), length};
}

std::string sha256_text(std::string_view content) {
    return hexadecimal(sha256_bytes(content));
}

}  // namespace prtool
