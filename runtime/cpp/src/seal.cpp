#include "seal.hpp"

#include <algorithm>
#include <string_view>

#include "errors.hpp"
#include "sha256.hpp"

namespace prtool {

namespace {

constexpr std::string_view kBefore = ",\n \"seal\": \"";
constexpr std::string_view kBehind = "\"\n}\n";
constexpr std::size_t kDigits = 64;
constexpr std::size_t kSealBytes = kBefore.size() + kDigits + kBehind.size();

}  // namespace

void check_seal(const std::string& bytes, const std::string& where) {
    const std::string_view all = bytes;
    const std::string_view sealed = all.substr(0, all.size() - std::min(all.size(), kSealBytes));
    const std::string_view seal = all.substr(sealed.size());
    const bool formed = seal.size() == kSealBytes && seal.substr(0, kBefore.size()) == kBefore && seal.substr(kBefore.size() + kDigits) == kBehind;
    if (!formed) throw Error(Status::bundle, where + " does not end in its seal; it is damaged or of an older schema: make a new bundle with 'prtool export'");
    if (seal.substr(kBefore.size(), kDigits) != sha256_text(sealed)) {
        throw Error(Status::bundle, where + " was changed: its SHA-256 is not that of its seal; copy or export the bundle again");
    }
}

}  // namespace prtool
