"""Reading the files of a bundle: regular files only, through no link, of bounded size, and the same file later."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from prtool import strict
from prtool.errors import BundleError


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What distinguishes files at the same path: device, inode, size in bytes, and time of the last change in nanoseconds."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileIdentity":
        """The identity in the system's record of a file."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file for reading, unbuffered; its last part may not be a link, and it is never waited for.

    Raises:
        BundleError: missing, a link, a FIFO, a device, a folder, or not readable; an OSError of the body too.
    """
    try:
        with strict.open_regular(path, follow_links=False, buffering=0) as stream:
            yield stream
    except FileNotFoundError as cause:
        raise BundleError(f"{path} is missing; copy the whole bundle again, or export it again") from cause
    except (OSError, ValueError) as cause:
        # ValueError: no regular file, or a null byte in the name.
        reason = "it is a link" if path.is_symlink() else getattr(cause, "strerror", None) or str(cause)
        raise BundleError(f"{path} cannot be read: {reason}") from cause


def read_bounded(path: Path, most_bytes: int) -> tuple[bytes, FileIdentity]:
    """The content and identity of a regular file of at most `most_bytes`; see `open_regular`.

    Raises:
        BundleError: also where the file is larger, or grows while it is read.
    """
    with open_regular(path) as stream:
        identity = FileIdentity.of(os.fstat(stream.fileno()))
        content = bytearray()
        # The size may be wrong by the time of reading, so the reading itself is bounded as well.
        while identity.size <= most_bytes and len(content) <= most_bytes and (chunk := stream.read(min(1 << 20, most_bytes + 1 - len(content)))):
            content += chunk
        if max(identity.size, len(content)) > most_bytes:
            raise BundleError(f"{path} has more than {most_bytes} bytes, the most that is read; export the bundle again")
    return bytes(content), identity
