"""Images inside uncompressed tar shards, read by shard and member as a range of bytes, without unpacking; safe from many threads.

DataError names a shard that cannot be read, is compressed or damaged, or lacks a member.
"""

import functools
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from prtool.errors import DataError
from prtool.strict import open_regular
from prtool.text_safety import printable

SHARD_SUFFIX = ".tar"

Span = tuple[int, int]
"""Where a member's bytes lie in its shard: offset and length, in bytes."""

_BLOCK = tarfile.BLOCKSIZE
_MAX_EXTENSION_BYTES = 1 << 20
_LONG_NAME, _LONG_LINK, _PAX_GLOBAL = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, _PAX_GLOBAL)
# All other types carry data.
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")


def locate(root: Path, path: str) -> tuple[Path, str] | None:
    """The shard and member of a path that leads into one ("part-0.tar/0001.jpg"), or None for an ordinary file.

    A folder may be called "x.tar" as well: only a file counts as a shard.
    """
    end = path.find(SHARD_SUFFIX + "/")
    while end >= 0:
        shard = root / path[: end + len(SHARD_SUFFIX)]
        # Path.is_file raises where a name is too long.
        if os.path.isfile(shard):  # noqa: PTH113
            return shard, path[end + len(SHARD_SUFFIX) + 1 :]
        end = path.find(SHARD_SUFFIX + "/", end + 1)
    return None


def members(shard: Path) -> Mapping[str, Span]:
    """Every file of a shard in the order of the shard, by its name without a leading "./"; read once, then remembered.

    A hard link has the bytes of the file that it leads to. Two files of one name, and links that lead nowhere, are errors.
    """
    try:
        found = shard.stat()
        return _index(shard, found.st_size, found.st_mtime_ns)
    except (tarfile.TarError, ValueError) as cause:
        why = printable(cause, 300)
        raise DataError(f"{shard} is not a whole, uncompressed tar file ({why}); copy it again, or unpack it if it is compressed") from cause
    except OSError as cause:
        raise DataError(f"{shard} cannot be read: {cause.strerror or cause}") from cause


def member_span(shard: Path, member: str) -> Span:
    """Offset and length of one member, in bytes."""
    spans = members(shard)
    if member not in spans:
        raise DataError(f"{shard} has no member {member!r} among its {len(spans)}; the shard was changed or the path is wrong")
    return spans[member]


def read_member(shard: Path, member: str) -> bytes:
    """The bytes of one member."""
    offset, length = member_span(shard, member)
    try:
        with open_regular(shard) as stream:
            stream.seek(offset)
            content = stream.read(length)
    except (OSError, ValueError) as cause:
        raise DataError(f"{shard} cannot be read: {getattr(cause, 'strerror', None) or cause}") from cause
    if len(content) != length:
        raise DataError(f"{shard} ends within {member}: {len(content)} of {length} bytes; copy the shard again")
    return content


# Only headers are read, once for each state of the file; an index takes about 200 bytes a member.
@functools.lru_cache(maxsize=4096)
def _index(shard: Path, size: int, modified_ns: int) -> Mapping[str, Span]:  # noqa: ARG001 - part of the key
    spans: dict[str, Span] = {}
    links: dict[str, str] = {}
    with open_regular(shard) as stream:
        for header in _headers(stream, os.fstat(stream.fileno()).st_size):
            name = posixpath.normpath(header.name).lstrip("/")
            is_link = header.kind == tarfile.LNKTYPE
            if not is_link and header.kind not in tarfile.REGULAR_TYPES:
                continue
            if name in spans:
                raise DataError(f"{shard} has two members called '{printable(name)}'; a sample's files need names of their own")
            # A link has a place from the start, so that the order of the shard stays.
            spans[name] = (header.offset, header.size)
            if is_link:
                links[name] = posixpath.normpath(header.link).lstrip("/")
    for name, target in links.items():
        if target not in spans or target in links:
            raise DataError(f"{shard}: the member '{printable(name)}' is a link to '{printable(target)}', which is not a file of the shard")
        spans[name] = spans[target]
    return MappingProxyType(spans)


class _Header(NamedTuple):
    """One member: its name, its type as in tarfile, the name that a link leads to, and where its bytes lie."""

    name: str
    kind: bytes
    link: str
    offset: int
    size: int


def _headers(stream: BinaryIO, end: int) -> Iterator[_Header]:
    """The members of an uncompressed tar file of `end` bytes, in order, read within bounds.

    Python's tarfile never returns from a negative size (3.11.7), and allocates the memory that a sparse header claims.

    Raises:
        tarfile.TarError: it is not a tar file, is compressed, ends early, holds a sparse file, or a header claims what cannot be.
    """
    offset = 0
    shared: dict[str, str] = {}
    own: dict[str, str] = {}
    while True:
        stream.seek(offset)
        block = stream.read(_BLOCK)
        if len(block) < _BLOCK:
            raise tarfile.ReadError(f"it ends early, at byte {offset}")
        if block == bytes(_BLOCK):
            return
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        start, size = offset + _BLOCK, _size(info, {**shared, **own})
        if size < 0 or (info.type not in _WITHOUT_DATA and size > end - start):
            raise tarfile.ReadError(f"the member at byte {offset} claims {size} bytes, but {max(0, end - start)} follow: it ends early")
        offset = start if info.type in _WITHOUT_DATA else start + -(-size // _BLOCK) * _BLOCK
        if info.type in _EXTENSIONS:
            (shared if info.type == _PAX_GLOBAL else own).update(_extension(stream, info.type, size))
            continue
        fields = {**shared, **own}
        if info.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse.") for name in fields):
            raise tarfile.ReadError(f"the member {fields.get('path', info.name)!r} is stored sparse; make the tar file without --sparse")
        yield _Header(fields.get("path", info.name), info.type, fields.get("linkpath", info.linkname), start, size)
        own = {}


def _size(info: tarfile.TarInfo, fields: Mapping[str, str]) -> int:
    text = "" if info.type in _EXTENSIONS else fields.get("size", "")
    if not text:
        return info.size
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise tarfile.ReadError("a size is not a number")
    return int(text)


def _extension(stream: BinaryIO, kind: bytes, size: int) -> dict[str, str]:
    """The fields, named as in pax, that an extension header gives to the member behind it."""
    if size > _MAX_EXTENSION_BYTES:
        raise tarfile.ReadError(f"an extension header has {size} bytes, but at most {_MAX_EXTENSION_BYTES} are read")
    content = stream.read(size)
    if kind in (_LONG_NAME, _LONG_LINK):
        return {"path" if kind == _LONG_NAME else "linkpath": content.split(b"\0")[0].decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while content.strip(b"\0"):
        # "LENGTH NAME=VALUE\n", where the length counts the whole record.
        record = _PAX_RECORD.match(content)
        length = int(record.group(1)) if record else 0
        if record is None or not record.end() < length <= len(content):
            raise tarfile.ReadError("an extension header is damaged")
        found[record.group(2).decode("utf-8", "replace")] = content[record.end() : length - 1].decode("utf-8", "surrogateescape")
        content = content[length:]
    return found
