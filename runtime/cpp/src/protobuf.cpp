#include "protobuf.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

namespace prtool {

namespace {

constexpr std::int64_t kMostTextBytes = 4096;
constexpr std::size_t kWindowBytes = 65'536;
constexpr std::uint64_t kVarint = 0, kLength = 2, kFixed32 = 5;
constexpr int kMostVarintBits = 70;

std::uint64_t wire_of(FieldKind kind) {
    if (kind == FieldKind::number) return kVarint;
    return kind == FieldKind::bytes ? kLength : kFixed32;
}

std::string place_of(const char* what, std::uint64_t field) {
    return std::string(what) + " has field " + std::to_string(field);
}

bool is_utf8(const std::string& text) {
    try {
        nlohmann::json(text).dump();
        return true;
    } catch (const nlohmann::json::exception&) {
        return false;
    }
}

}  // namespace

void MessageReader::message(ByteRange range, const MessageRules& rules, const char* what, const Take& take) {
    std::set<std::uint64_t> seen;
    while (range.begin < range.end) {
        const Tag found = tag(range, rules, what);
        const std::uint64_t number = found.rule.number;
        if (!found.rule.repeated && !seen.insert(number).second) throw MalformedMessage(place_of(what, number) + " twice");
        if (found.wire == kVarint) {
            const auto value = static_cast<std::int64_t>(varint(range));
            take(number, {value, value});
            continue;
        }
        ByteRange inside = payload(range, found, what);
        if (found.rule.kind != FieldKind::number) {
            take(number, inside);
            continue;
        }
        while (inside.begin < inside.end) {
            const auto value = static_cast<std::int64_t>(varint(inside));
            take(number, {value, value});
        }
    }
}

MessageReader::Tag MessageReader::tag(ByteRange& rest, const MessageRules& rules, const char* what) {
    const std::uint64_t found = varint(rest);
    const std::uint64_t number = found >> 3U, wire = found & 7U;
    const auto rule = std::find_if(rules.begin(), rules.end(), [number](const FieldRule& one) { return one.number == number; });
    if (rule == rules.end()) throw MalformedMessage(place_of(what, number) + ", which is not read");
    const bool packed = wire == kLength && rule->repeated && rule->kind != FieldKind::bytes;
    if (wire != wire_of(rule->kind) && !packed) throw MalformedMessage(place_of(what, number) + " in another form");
    return {*rule, wire};
}

// The bytes of a field, and `rest` moves past them.
ByteRange MessageReader::payload(ByteRange& rest, const Tag& tag, const char* what) {
    const std::uint64_t length = tag.wire == kLength ? varint(rest) : 4;
    if (length > static_cast<std::uint64_t>(rest.end - rest.begin)) {
        throw MalformedMessage(std::string(what) + " ends inside field " + std::to_string(tag.rule.number));
    }
    const ByteRange found{rest.begin, rest.begin + static_cast<std::int64_t>(length)};
    rest.begin = found.end;
    return found;
}

std::string MessageReader::text(ByteRange range) {
    const std::int64_t length = range.end - range.begin;
    if (length > kMostTextBytes) throw MalformedMessage("a text has " + std::to_string(length) + " bytes");
    std::string found(static_cast<std::size_t>(length), '\0');
    for (char& letter : found) letter = static_cast<char>(byte(range.begin++));
    if (!is_utf8(found)) throw MalformedMessage("a text is not UTF-8");
    return found;
}

std::uint64_t MessageReader::varint(ByteRange& rest) {
    std::uint64_t value = 0;
    for (int shift = 0; shift < kMostVarintBits; shift += 7) {
        if (rest.begin >= rest.end) throw MalformedMessage("a number is cut");
        const std::uint64_t part = byte(rest.begin++);
        if (shift < 64) value |= (part & 0x7fU) << static_cast<unsigned>(shift);
        if (part < 0x80U) return value;
    }
    throw MalformedMessage("a number is too long");
}

std::uint8_t MessageReader::byte(std::int64_t position) {
    if (position < base_ || position >= base_ + static_cast<std::int64_t>(window_.size())) {
        window_.resize(kWindowBytes);
        window_.resize(file_.read_at(position, window_.data(), window_.size()));
        base_ = position;
        if (window_.empty()) throw MalformedMessage("the file became shorter");
    }
    return window_[static_cast<std::size_t>(position - base_)];
}

}  // namespace prtool
