// Why an image is not decoded, and the one place where its memory is allocated.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "errors.hpp"
#include "image/decode.hpp"

namespace prtool {

// The text is the rest of a sentence that begins with the image's name, which decoders do not know.
class Refusal : public std::runtime_error {
public:
    Refusal(Status status, const std::string& predicate) : std::runtime_error(predicate), status_(status) {}
    Status status() const noexcept { return status_; }

private:
    Status status_;
};

Refusal damaged(const std::string& reason);

// What Pillow says where a file ends too early.
Refusal truncated();

// The memory for so many pixels does not suffice.
Refusal too_little_memory(std::int64_t width, std::int64_t height);

// A Refusal where there is no pixel, or more than kMaxPixels.
void check_size(std::int64_t width, std::int64_t height);

// A black image, or a Refusal: see check_size; or no memory for it. To be called before anything else that takes memory in
// proportion to the pixels.
Rgb allocate(std::int64_t width, std::int64_t height);

}  // namespace prtool
