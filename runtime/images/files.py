"""Finds the image files of a folder by their names, and counts those that are left out, with the reason."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from prtool.errors import DataError
from prtool.text_safety import printable

_PLAIN_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
SUFFIXES = frozenset((*_PLAIN_SUFFIXES, ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif"))
"""Suffixes of image files, compared in lower case."""

_UNREAD_SUFFIXES = frozenset((".heic", ".heif", ".jxl", ".svg", ".psd", ".tga", ".ico", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"))
_MADE_BY_SYSTEMS = re.compile(r"@eadir|__macosx|thumbs|thumbnails|#recycle|@recycle|\$recycle\.bin|lost\+found", re.IGNORECASE)
_HIDDEN, _MADE, _UNREAD = "hidden", "in folders of thumbnails or deleted files", "of a format that is not read"
_LINKS = "links to folders, which are not followed"
_NOT_REGULAR, _BROKEN, _CLOSED = "named pipes, sockets or devices", "links to nothing", "folders that cannot be listed"


@dataclass(slots=True)
class LeftOut:
    """Images that are left out: for each reason, how many and the first."""

    found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """One more image is left out."""
        count, first = self.found.get(reason, (0, path))
        self.found[reason] = (count + 1, first)

    def merge(self, other: "LeftOut", folder: Path) -> None:
        """What a search of `folder` left out."""
        for reason, (count, first) in other.found.items():
            before, kept = self.found.get(reason, (0, str(folder / first)))
            self.found[reason] = (before + count, kept)

    def note(self) -> str:
        """One line for the user; "" where nothing is left out."""
        parts = [f"{count} {reason} (the first: {printable(first)})" for reason, (count, first) in self.found.items()]
        total = sum(count for count, _ in self.found.values())
        return f"{total} {'file is' if total == 1 else 'files are'} not used: {', '.join(parts)}" if parts else ""


@dataclass(slots=True)
class ImageFiles:
    """The image files under a folder.

    Attributes:
        paths: relative to the folder, with "/", sorted by their parts.
        left_out: the others.
    """

    paths: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


def is_image(name: str) -> bool:
    """Whether a file's name has one of SUFFIXES, and is not hidden."""
    return not name.startswith(".") and _suffix(name) in SUFFIXES


def search(folder: str | Path, *, follow: bool = False) -> ImageFiles:
    """Every image file under a folder with its sub-folders.

    Left out are hidden files and folders (".name"), folders that systems make for thumbnails or deleted files ("@eaDir",
    "__MACOSX", ...), image formats that are not read, and whatever is not a regular file.

    Args:
        folder: where to begin; its own name does not matter.
        follow: whether links to folders are followed, but for those that lead back to a folder around them.

    Raises:
        DataError: the folder, or one in it, cannot be listed.
    """
    found = ImageFiles()
    # Each folder with its path, the reason why its images are left out, and the real folders around it.
    waiting: list[tuple[str, str, frozenset[str]]] = [("", "", frozenset())]
    while waiting:
        inside, reason, around = waiting.pop()
        around |= {os.path.realpath(Path(folder, inside))} if follow else frozenset()
        for item in _scan(Path(folder, inside), found.left_out if reason else None):
            path = f"{inside}/{item.name}" if inside else item.name
            if not _is_folder(item):
                _sort_file(found, item, path, reason)
            elif item.is_symlink() and (not follow or os.path.realpath(item.path) in around):
                found.left_out.add(_LINKS, path)
            else:
                waiting.append((path, reason or _why_folder(item.name), around))
    found.paths.sort(key=lambda path: path.split("/"))
    return found


def folder_names(folder: Path) -> list[str]:
    """The names of the folders directly in a folder that `search` takes images from, sorted.

    Raises:
        DataError: the folder cannot be listed.
    """
    return sorted(item.name for item in _scan(folder) if _is_folder(item) and not _why_folder(item.name))


def grouped(paths: Iterable[str]) -> dict[str, list[str]]:
    """Relative paths by their first folder, in order; those without one under ""."""
    found: dict[str, list[str]] = {}
    for path in paths:
        head, slash, _ = path.partition("/")
        found.setdefault(head if slash else "", []).append(path)
    return found


def _sort_file(found: ImageFiles, item: os.DirEntry[str], path: str, reason: str) -> None:
    suffix = _suffix(item.name)
    if suffix in _UNREAD_SUFFIXES:
        found.left_out.add(reason or _UNREAD, path)
    elif suffix in SUFFIXES:
        why = reason or (_HIDDEN if item.name.startswith(".") else "") or _why_not_regular(item)
        if why:
            found.left_out.add(why, path)
        else:
            found.paths.append(path)


def _why_folder(name: str) -> str:
    if name.startswith("."):
        return _HIDDEN
    return _MADE if _MADE_BY_SYSTEMS.fullmatch(name) else ""


def _why_not_regular(item: os.DirEntry[str]) -> str:
    # Knows files without a `stat` each, but for links.
    try:
        if item.is_file():
            return ""
        item.stat()
    except OSError:
        return _BROKEN
    return _NOT_REGULAR


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        # A link that leads to itself.
        return False


def _suffix(name: str) -> str:
    # Path(name).suffix is 20 times as slow, which counts for a million names.
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _scan(folder: Path, left_out: LeftOut | None = None) -> list[os.DirEntry[str]]:
    """What lies in a folder; one whose images are left out anyway may be closed to us."""
    # scandir knows folders from files without a stat each: ImageNet has 1.3 million.
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError as cause:
        if left_out is not None:
            left_out.add(_CLOSED, printable(folder))
            return []
        raise DataError(f"{printable(folder, 300)} cannot be listed: {cause.strerror or cause}; give a folder of images") from cause
