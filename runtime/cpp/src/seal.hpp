// The seal of a manifest: a digest of its own bytes, so that a changed one is noticed before anything in it is believed.
#pragma once

#include <string>

namespace prtool {

// The bytes must end in `,\n "seal": "<64 hexadecimal digits>"\n}\n`; the digits are the SHA-256 of all bytes before that.
// Throws Error(Status::bundle): there is no seal, or it is another one.
void check_seal(const std::string& bytes, const std::string& where);

}  // namespace prtool
