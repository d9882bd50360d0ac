"""Finds image files in folders by their names, and counts those that are left out, with the reason."""

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
        """Adds one image."""
        count, first = self.found.get(reason, (0, path))
        self.found[reason] = (count + 1, first)

    def merge(self, other: "LeftOut", folder: Path) -> None:
        """Adds what a search of `folder` left out."""
        for reason, (count, first) in other.found.items():
            before, kept = self.found.get(reason, (0, str(folder / first)))
            self.found[reason] = (before + count, kept)

    def note(self) -> str:
        """One line for the user; "" if nothing is left out."""
        parts = [f"{count} {reason} (the first: {printable(first)})" for reason, (count, first) in self.found.items()]
        total = sum(count for count, _ in self.found.values())
        return f"{total} {'file is' if total == 1 else 'files are'} not used: {', '.join(parts)}" if parts else ""


def is_image(name: str) -> bool:
    """Whether a file's name has one of SUFFIXES, and is not hidden."""
    return not name.startswith(".") and _suffix(name) in SUFFIXES


def search(folder: str | Path, *, follow: bool = False) -> tuple[list[str], LeftOut]:
    """Every image file under a folder with its sub-folders.

    Left out are hidden files and folders (".name"), folders that systems make for thumbnails or deleted files ("@eaDir",
    "__MACOSX", ...), image formats that are not read, and whatever is not a regular file.

    Args:
        folder: where to begin; its own name does not matter.
        follow: whether links to folders are followed, unless they lead back to a folder around them.

    Returns:
        The files' paths relative to the folder, with "/", sorted by their parts; and the files that are left out.

    Raises:
        DataError: the folder, or one in it, cannot be listed.
    """
    paths: list[str] = []
    left_out = LeftOut()
    # Each folder with its path, the reason why its images are left out, and the real folders around it.
    waiting: list[tuple[str, str, frozenset[str]]] = [("", "", frozenset())]
    while waiting:
        inside, reason, around = waiting.pop()
        around |= {os.path.realpath(Path(folder, inside))} if follow else frozenset()
        for item in _scan(Path(folder, inside), left_out if reason else None):
            path = f"{inside}/{item.name}" if inside else item.name
            if _is_folder(item):
                if item.is_symlink() and (not follow or os.path.realpath(item.path) in around):
                    left_out.add(_LINKS, path)
                else:
                    waiting.append((path, reason or _why_folder(item.name), around))
            elif (suffix := _suffix(item.name)) in SUFFIXES or suffix in _UNREAD_SUFFIXES:
                why = reason or _why_file(item, suffix)
                if why:
                    left_out.add(why, path)
                else:
                    paths.append(path)
    paths.sort(key=lambda path: path.split("/"))
    return paths, left_out


def expand_images(paths: Iterable[str | Path]) -> tuple[list[Path], LeftOut]:
    """Files as given, whatever their suffix, and each folder replaced by the images in it, in the order of `paths`.

    Returns:
        The files, and what was left out of the folders.

    Raises:
        DataError: a folder cannot be listed.
    """
    files: list[Path] = []
    left_out = LeftOut()
    for path in map(Path, paths):
        # Path.is_dir raises where a name is too long.
        if not os.path.isdir(path):  # noqa: PTH112
            files.append(path)
            continue
        names, unused = search(path)
        files += [path / name for name in names]
        left_out.merge(unused, path)
    return files, left_out


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


def _why_folder(name: str) -> str:
    if name.startswith("."):
        return _HIDDEN
    return _MADE if _MADE_BY_SYSTEMS.fullmatch(name) else ""


def _why_file(item: os.DirEntry[str], suffix: str) -> str:
    if suffix in _UNREAD_SUFFIXES:
        return _UNREAD
    if item.name.startswith("."):
        return _HIDDEN
    try:
        # Only links need a `stat`.
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
    """The entries of a folder; with `left_out`, one without permission is counted there."""
    # scandir knows folders from files without a stat each: ImageNet has 1.3 million.
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError as cause:
        if left_out is not None:
            left_out.add(_CLOSED, printable(folder))
            return []
        raise DataError(f"{printable(folder, 300)} cannot be listed: {cause.strerror or cause}; give a folder of images") from cause
