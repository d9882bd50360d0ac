"""Images inside uncompressed tar shards, read by shard and member as a range of bytes, without unpacking."""

import functools
import posixpath
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from prtool.errors import DataError

SHARD_SUFFIX = ".tar"

Span = tuple[int, int]
"""Where a member's bytes lie in its shard: offset and length, in bytes."""


def locate(root: Path, path: str) -> tuple[Path, str] | None:
    """The shard and member of a path that leads into one ("part-0.tar/0001.jpg"), or None for an ordinary file.

    A folder may be called "x.tar" as well: only a file counts as a shard.
    """
    end = path.find(SHARD_SUFFIX + "/")
    while end >= 0:
        shard = root / path[: end + len(SHARD_SUFFIX)]
        if shard.is_file():
            return shard, path[end + len(SHARD_SUFFIX) + 1 :]
        end = path.find(SHARD_SUFFIX + "/", end + 1)
    return None


def members(shard: Path) -> Mapping[str, Span]:
    """Every plain file of a shard in the order of the shard, by its name without a leading "./"; read once, then remembered.

    Raises:
        DataError: the shard cannot be read, is compressed, or ends early.
    """
    try:
        found = shard.stat()
        return _index(shard, found.st_size, found.st_mtime_ns)
    except tarfile.TarError as cause:
        raise DataError(f"{shard} is no whole, uncompressed tar file ({cause}); copy it again, or unpack what is compressed") from cause
    except OSError as cause:
        raise DataError(f"{shard} cannot be read: {cause.strerror or cause}") from cause


def read_member(shard: Path, member: str) -> bytes:
    """The bytes of one member. Safe from many threads.

    Raises:
        DataError: no such member, or the shard cannot be read or is shorter than its index says.
    """
    offset, length = member_span(shard, member)
    try:
        with shard.open("rb") as stream:
            stream.seek(offset)
            content = stream.read(length)
    except OSError as cause:
        raise DataError(f"{shard} cannot be read: {cause.strerror or cause}") from cause
    if len(content) != length:
        raise DataError(f"{shard} ends within {member}: {len(content)} of {length} bytes; copy the shard again")
    return content


def member_span(shard: Path, member: str) -> Span:
    """Offset and length of one member, in bytes.

    Raises:
        DataError: no such member, or the shard cannot be read.
    """
    spans = members(shard)
    if member not in spans:
        raise DataError(f"{shard} has no member {member!r} among its {len(spans)}; the shard was changed or the path is wrong")
    return spans[member]


# A shard is indexed by reading its headers alone, once for each state of the file; an index takes about 200 bytes a member.
@functools.lru_cache(maxsize=4096)
def _index(shard: Path, size: int, modified_ns: int) -> Mapping[str, Span]:  # noqa: ARG001 - part of the key
    with tarfile.open(shard, "r:") as archive:
        spans = {posixpath.normpath(item.name).lstrip("/"): (item.offset_data, item.size) for item in archive if item.isreg()}
        end = archive.offset
    # tarfile takes a header that is cut off for the end; a whole tar file ends with zeros.
    with shard.open("rb") as stream:
        stream.seek(end)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it ends early, after {len(spans)} members")
    return MappingProxyType(spans)
