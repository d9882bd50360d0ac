// The wire format of Protocol Buffers, read strictly and without a copy of what is skipped.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "guarded_file.hpp"

namespace prtool {

// Bytes that are no message of the expected form; the text says why.
class MalformedMessage : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// One field of a message: a whole number, bytes (text or a message), or a float of 32 bits.
enum class FieldKind { number, bytes, floating };
struct FieldRule {
    std::uint64_t number;
    FieldKind kind;
    bool repeated = false;
};
using MessageRules = std::vector<FieldRule>;

// Offsets in bytes from the file's beginning.
struct ByteRange {
    std::int64_t begin = 0;
    std::int64_t end = 0;
};

// Reads messages of a file through a window.
class MessageReader {
public:
    explicit MessageReader(const GuardedFile& file) : file_(file) {}

    // Takes a field's number and its range of bytes, or for a whole number the number as both ends of the range.
    using Take = std::function<void(std::uint64_t field, ByteRange value)>;

    // Walks over the fields of one message in their order; a packed list comes as its numbers one by one.
    // Throws MalformedMessage: a field is not in `rules`, of another kind, repeated where it may not be, or longer than the message.
    void message(ByteRange range, const MessageRules& rules, const char* what, const Take& take);

    // Throws MalformedMessage: it is too long, or not UTF-8.
    std::string text(ByteRange range);

private:
    struct Tag {
        const FieldRule& rule;
        std::uint64_t wire;
    };

    Tag tag(ByteRange& rest, const MessageRules& rules, const char* what);
    ByteRange payload(ByteRange& rest, const Tag& tag, const char* what);
    std::uint64_t varint(ByteRange& rest);
    std::uint8_t byte(std::int64_t position);

    const GuardedFile& file_;
    std::vector<std::uint8_t> window_;
    std::int64_t base_ = 0;  // offset of the window
};

}  // namespace prtool
