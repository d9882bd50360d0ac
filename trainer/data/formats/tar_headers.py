"""Headers of an uncompressed tar file, read within bounds.

Python's own tarfile loops for ever on a negative size (3.11.7), and takes the memory that a sparse header claims.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = tarfile.BLOCKSIZE
_EXTENSION_BYTES = 1 << 20
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, _PAX, tarfile.SOLARIS_XHDTYPE, _PAX_GLOBAL)
# All types but these carry data.
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")


@dataclass(frozen=True, slots=True)
class Header:
    """One member: its name, its type as in tarfile, the name that a link leads to, and where its bytes lie."""

    name: str
    kind: bytes
    link: str
    offset: int
    size: int


def read_headers(stream: BinaryIO, end: int) -> Iterator[Header]:
    """The members of a tar file in order.

    Args:
        stream: the open file, from its beginning.
        end: its size in bytes.

    Raises:
        tarfile.TarError: it is no tar file, is compressed, ends early, holds a sparse file, or a header claims what cannot be.
        OSError: it cannot be read.
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
        start, size = offset + _BLOCK, _size(info, own, shared)
        if size < 0 or (info.type not in _WITHOUT_DATA and size > end - start):
            raise tarfile.ReadError(f"the member at byte {offset} claims {size} bytes, but {max(0, end - start)} follow: it ends early")
        offset = start if info.type in _WITHOUT_DATA else start + -(-size // _BLOCK) * _BLOCK
        if info.type in _EXTENSIONS:
            (shared if info.type == _PAX_GLOBAL else own).update(_extension(stream, info.type, size))
            continue
        settings = {**shared, **own}
        if info.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse.") for name in settings):
            raise tarfile.ReadError(f"the member {settings.get('path', info.name)!r} is stored sparse; make the tar file without --sparse")
        yield Header(settings.get("path", info.name), info.type, settings.get("linkpath", info.linkname), start, size)
        own = {}


def _size(info: tarfile.TarInfo, own: dict[str, str], shared: dict[str, str]) -> int:
    text = "" if info.type in _EXTENSIONS else own.get("size", shared.get("size", ""))
    if not text:
        return info.size
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise tarfile.ReadError("a size is no number")
    return int(text)


def _extension(stream: BinaryIO, kind: bytes, size: int) -> dict[str, str]:
    """What an extension header says about the member behind it, as pax names it."""
    if size > _EXTENSION_BYTES:
        raise tarfile.ReadError(f"an extension header has {size} bytes, but at most {_EXTENSION_BYTES} are read")
    content = stream.read(size)
    if kind in (_LONG_NAME, _LONG_LINK):
        return {"path" if kind == _LONG_NAME else "linkpath": content.split(b"\0")[0].decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while content.strip(b"\0"):
        # "LENGTH NAME=VALUE\n", where the length counts the whole record.
        record = _RECORD.match(content)
        length = int(record.group(1)) if record else 0
        if record is None or not record.end() < length <= len(content):
            raise tarfile.ReadError("an extension header is damaged")
        found[record.group(2).decode("utf-8", "replace")] = content[record.end() : length - 1].decode("utf-8", "surrogateescape")
        content = content[length:]
    return found
