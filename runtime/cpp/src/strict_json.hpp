// JSON from untrusted files: parsed within bounds, and without anything that two readers could take differently.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace prtool {

inline constexpr int kMostNesting = 32;
// Whole numbers that float64 holds exactly: every JSON reader agrees on them.
inline constexpr std::int64_t kMostWhole = std::int64_t{1} << 53;

// `where` names the file in messages. Throws Error(Status::bundle): no JSON in UTF-8, nested deeper than kMostNesting, a name
// twice in one object, a whole number beyond +-kMostWhole, or a number that is not finite.
nlohmann::json parse_strictly(const std::string& text, const std::string& where);

}  // namespace prtool
