"""The wire format of Protocol Buffers, read strictly and without a copy of what is skipped."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

TEXT_BYTES = 4096
"""Most bytes of one text."""
_WINDOW_BYTES = 1 << 16
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIRE = {"number": _VARINT, "bytes": _LENGTH, "text": _LENGTH, "float": _FIXED32}
_MAX_VARINT_BYTES = 10


class MalformedMessage(ValueError):
    """Bytes that are no message of the expected form."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message: "number" (a whole number), "text", "bytes" (any bytes, or a message) or "float" (32 bits)."""

    kind: str
    repeated: bool = False


class MessageReader:
    """Reads messages of a file through a window; ranges are offsets in bytes from the file's beginning."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        """`stream`: opened for reading and seekable; `size`: its bytes."""
        self.size = size
        self._stream = stream
        self._window = b""
        self._base = 0

    def message(self, start: int, end: int, fields: Mapping[int, Field], what: str) -> Iterator[tuple[int, int, int]]:
        """The fields of the message `what` in their order; raises MalformedMessage for one that is not of the known `fields`, or not whole.

        Yields:
            (number of the field, first, last): the range of bytes, or a whole number twice; a packed list as its numbers one by one.
        """
        seen: set[int] = set()
        position = start
        while position < end:
            tag, position = self._varint(position, end)
            number, wire = tag >> 3, tag & 7
            field = fields.get(number)
            if field is None or (number in seen and not field.repeated):
                raise MalformedMessage(f"{what} has field {number}{', which is not read' if field is None else ' twice'}")
            seen.add(number)
            packed = wire == _LENGTH and field.repeated and field.kind in ("number", "float")
            if wire != _WIRE[field.kind] and not packed:
                raise MalformedMessage(f"{what} has field {number} in another form")
            if wire == _VARINT:
                value, position = self._varint(position, end)
                yield number, _signed(value), _signed(value)
                continue
            length, position = self._varint(position, end) if wire == _LENGTH else (4, position)
            if length > end - position:
                raise MalformedMessage(f"{what} ends inside field {number}")
            if packed and field.kind == "number":
                yield from ((number, value, value) for value in self._packed(position, position + length))
            else:
                yield number, position, position + length
            position += length

    def fields(self, start: int, end: int, fields: Mapping[int, Field], what: str) -> dict[int, Any]:
        """The fields of a small message by number, in their order: numbers, texts, and ranges of bytes; see `message`."""
        return {
            number: first if fields[number].kind == "number" else self.text(first, last) if fields[number].kind == "text" else (first, last)
            for number, first, last in self.message(start, end, fields, what)
        }

    def text(self, start: int, end: int) -> str:
        """The text of a range; raises MalformedMessage where it is too long or no UTF-8."""
        if end - start > TEXT_BYTES:
            raise MalformedMessage(f"a text has {end - start} bytes")
        try:
            return self._bytes(start, end).decode()
        except UnicodeDecodeError as cause:
            raise MalformedMessage("a text is no UTF-8") from cause

    def _packed(self, start: int, end: int) -> Iterator[int]:
        position = start
        while position < end:
            value, position = self._varint(position, end)
            yield _signed(value)

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """(value, position behind it)."""
        value, shift = 0, 0
        while position < end:
            byte = self._byte(position)
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
            if shift >= 7 * _MAX_VARINT_BYTES:
                raise MalformedMessage("a number is too long")
        raise MalformedMessage("a number is cut")

    def _byte(self, position: int) -> int:
        place = position - self._base
        if not 0 <= place < len(self._window):
            self._window, self._base, place = self._read(position, _WINDOW_BYTES), position, 0
            if not self._window:
                raise MalformedMessage("the file became shorter")
        return self._window[place]

    def _bytes(self, start: int, end: int) -> bytes:
        place = start - self._base
        if place >= 0 and place + end - start <= len(self._window):
            return self._window[place : place + end - start]
        content = self._read(start, end - start)
        if len(content) != end - start:
            raise MalformedMessage("the file became shorter")
        return content

    def _read(self, start: int, count: int) -> bytes:
        self._stream.seek(start)
        return self._stream.read(count)


def _signed(value: int) -> int:
    """A 64-bit number in two's complement."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
