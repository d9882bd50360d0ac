"""Images inside uncompressed tar shards, read by shard and member as a range of bytes, without unpacking."""

import functools
import os
import posixpath
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from prtool.errors import DataError
from prtool.strict import open_regular
from prtool.text_safety import printable
from prtool.trainer.data.formats.tar_headers import read_headers

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
        # Path.is_file raises where a name is too long.
        if os.path.isfile(shard):  # noqa: PTH113
            return shard, path[end + len(SHARD_SUFFIX) + 1 :]
        end = path.find(SHARD_SUFFIX + "/", end + 1)
    return None


def members(shard: Path) -> Mapping[str, Span]:
    """Every file of a shard in the order of the shard, by its name without a leading "./"; read once, then remembered.

    A hard link has the bytes of the file that it leads to.

    Raises:
        DataError: the shard cannot be read, is compressed, ends early, or has two files of one name or a link that leads nowhere.
    """
    try:
        found = shard.stat()
        return _index(shard, found.st_size, found.st_mtime_ns)
    except (tarfile.TarError, ValueError) as cause:
        why = printable(cause, 300)
        raise DataError(f"{shard} is no whole, uncompressed tar file ({why}); copy it again, or unpack what is compressed") from cause
    except OSError as cause:
        raise DataError(f"{shard} cannot be read: {cause.strerror or cause}") from cause


def read_member(shard: Path, member: str) -> bytes:
    """The bytes of one member. Safe from many threads.

    Raises:
        DataError: no such member, or the shard cannot be read or is shorter than its index says.
    """
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
    spans: dict[str, Span] = {}
    links: dict[str, str] = {}
    with open_regular(shard) as stream:
        for header in read_headers(stream, os.fstat(stream.fileno()).st_size):
            name = posixpath.normpath(header.name).lstrip("/")
            is_link = header.kind == tarfile.LNKTYPE
            if not is_link and header.kind not in tarfile.REGULAR_TYPES:
                continue
            if name in spans:
                raise DataError(f"{shard} has two members called '{printable(name)}'; a sample's files need names of their own")
            # A place for the link, so that the order of the shard stays.
            spans[name] = (header.offset, header.size)
            if is_link:
                links[name] = posixpath.normpath(header.link).lstrip("/")
    for name, target in links.items():
        if target not in spans or target in links:
            raise DataError(f"{shard}: the member '{printable(name)}' is a link to '{printable(target)}', which is no file of the shard")
        spans[name] = spans[target]
    return MappingProxyType(spans)
