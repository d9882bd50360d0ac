#include "sha256.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "errors.hpp"

namespace prtool {

namespace {

constexpr std::int64_t kChunk = std::int64_t{1} << 20;

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

std::string sha256_of(const GuardedFile& file) {
    const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    require(context != nullptr ? EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) : 0);
    std::vector<char> chunk(static_cast<std::size_t>(std::clamp<std::int64_t>(file.size(), 1, kChunk)));
    std::int64_t offset = 0;
    while (const std::size_t got = file.read_at(offset, chunk.data(), chunk.size())) {
        require(EVP_DigestUpdate(context.get(), chunk.data(), got));
        offset += static_cast<std::int64_t>(got);
    }
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int length = 0;
    require(EVP_DigestFinal_ex(context.get(), digest.data(), &length));
    return hexadecimal({reinterpret_cast<const char*>(digest.data()), length});
}

std::string sha256_text(std::string_view content) {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int length = 0;
    require(EVP_Digest(content.data(), content.size(), digest.data(), &length, EVP_sha256(), nullptr));
    return hexadecimal({reinterpret_cast<const char*>(digest.data()), length});
}

}  // namespace prtool
