"""Strict readers of files that others may have written: regular files of bounded size, and JSON and TOML of bounded values."""

import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

JSON_NESTING = 32
"""Lists and objects inside one another, at most."""
JSON_INTEGER = 2**53
"""Largest magnitude of a whole number: every language reads such numbers exactly."""
TOML_BYTES = 1 << 16
"""Size of a settings file at most."""
_NAME = r'(?:[\w-]++|"[^"\n]*+"|\'[^\'\n]*+\')'
# tomllib's time grows with the square of a dotted name's length.
_LONG_NAME = re.compile(rf"(?<![\w-]){_NAME}(?:[ \t]*+\.[ \t]*+{_NAME}){{{JSON_NESTING}}}")


def open_regular(path: Path, *, follow_links: bool = True, buffering: int = -1) -> BinaryIO:
    """Opens a regular file for reading; a FIFO or a device does not block.

    `follow_links`: whether the last part of the path may be a link. Raises OSError, or ValueError where it is not a regular file or
    its name has a null byte.
    """
    # Without O_NONBLOCK opening a FIFO waits for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags if follow_links else flags | getattr(os, "O_NOFOLLOW", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb", buffering)
    os.close(descriptor)
    raise ValueError(f"it is {kind_of(mode)} and not a regular file")


def kind_of(mode: int) -> str:
    """What `st_mode` says of a file that is not regular, as part of a message."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "of an unknown kind")


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. Raises OSError, or ValueError where it is not regular or has more than `limit` bytes."""
    with open_regular(path) as stream:
        return read_bounded(stream, limit)


def read_bounded(stream: BinaryIO, limit: int) -> bytes:
    """The content of an opened regular file. Raises ValueError where it has more than `limit` bytes, or grows while it is read."""
    size = os.fstat(stream.fileno()).st_size
    if size > limit:
        raise ValueError(f"it has {size} bytes, but at most {limit} are read")
    content = stream.read(size + 1)
    if len(content) > size:
        raise ValueError("it grew while it was read")
    return content


def parse_json(content: bytes) -> Any:  # noqa: ANN401 - any plain value
    """Plain JSON, with none of the values that languages read differently.

    Raises:
        ValueError: it is no JSON in UTF-8, repeats a name in an object, is nested more than 32 deep, or holds NaN, infinity or a
            whole number beyond +-2^53.
    """
    return _plain(lambda: json.loads(content.decode(), object_pairs_hook=_object))


def parse_toml(text: str) -> dict[str, Any]:
    """Plain TOML. Raises ValueError where it is none (TOMLDecodeError), has over 64 KiB, or a value beyond the limits of `parse_json`."""
    if len(text) > TOML_BYTES:
        raise ValueError(f"it has {len(text)} characters, but at most {TOML_BYTES} are read")
    if _LONG_NAME.search(text):
        raise ValueError(f"a name in it has more than {JSON_NESTING} parts")
    return cast(dict[str, Any], _plain(lambda: tomllib.loads(text)))


def _plain(read: Callable[[], object]) -> Any:  # noqa: ANN401 - any plain value
    """What was read, if it is within the limits of `parse_json`."""
    too_deep = f"it is nested more than {JSON_NESTING} deep"
    try:
        value = read()
    except RecursionError as cause:
        raise ValueError(too_deep) from cause
    level = [value]
    for depth in range(JSON_NESTING + 1):
        below: list[object] = []
        for item in level:
            if not isinstance(item, (dict, list)):
                _check_number(item)
            elif depth == JSON_NESTING:
                raise ValueError(too_deep)
            else:
                below.extend(item.values() if isinstance(item, dict) else item)
        level = below
    return value


def _check_number(item: object) -> None:
    if isinstance(item, float) and not math.isfinite(item):
        raise ValueError(f"it holds {item}, which is not a number")
    if isinstance(item, int) and abs(item) > JSON_INTEGER:
        raise ValueError("it holds a whole number beyond +-2^53")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it repeats a name in an object")
    return found
