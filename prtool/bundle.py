"""The bundle: a directory of graphs and a manifest, the only interface between training, export, engines and languages."""

import contextlib
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from prtool import strict
from prtool.errors import BundleError, ConfigError
from prtool.files import FileDigest, OutputKind, write_bytes
from prtool.graphs.graph_reader import check_graph
from prtool.manifest import GraphSpec, Manifest
from prtool.store import seal as sealed
from prtool.store import unseal
from prtool.text_safety import printable

MANIFEST_NAME = "prtool.json"
MANIFEST_BYTES = 16 << 20
"""Most bytes of a manifest."""


FileIdentity = tuple[int, int, int, int]
"""What distinguishes files at the same path: device, inode, size in bytes, and time of the last change in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. Reading it never runs code from it.

    Attributes:
        path: its directory.
        manifest: its manifest.
        identities: which file each name stood for, prtool.json included, when it was checked.
    """

    path: Path
    manifest: Manifest
    identities: Mapping[str, FileIdentity]

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Bundle":
        """Opens a bundle directory.

        Args:
            path: the directory that holds prtool.json.
            verify: check every file's SHA-256 (about 1 s a GB). The manifest's seal, sizes, names and graphs are always checked.

        Raises:
            BundleError: not a bundle, unknown schema, unsafe name, a file missing, changed, a link or no regular file, a graph that the
                exporter does not write, or files replaced meanwhile.
        """
        root = Path(path)
        value, identity = _read_manifest(root)
        manifest = Manifest.from_json(value)
        graphs: dict[str, set[GraphSpec]] = {}
        for graph in (graph for roles in manifest.graphs.values() for graph in roles.values()):
            graphs.setdefault(graph.file, set()).add(graph)
        sizes = {name: digest.size for name, digest in manifest.files.items()}
        identities = {MANIFEST_NAME: identity}
        for name, digest in manifest.files.items():
            with _open(root, name) as stream:
                identities[name] = _check_content(stream, root / name, digest, verify)
                for graph in graphs.get(name, ()):
                    check_graph(stream, str(root / name), graph, sizes)
        bundle = cls(root, manifest, identities)
        bundle.check_unchanged()
        return bundle

    def graph(self, role: str, precision: str = "fp32") -> GraphSpec:
        """The graph of one role; raises ConfigError where the bundle has no such precision or role."""
        roles = self.manifest.graphs.get(precision)
        if roles is None:
            known = ", ".join(self.manifest.graphs)
            raise ConfigError(f"precision = {precision!r}, but {self.path} holds {known}; export it with --precision {precision}")
        if role not in roles:
            raise ConfigError(f"graph = {role!r}, but {self.path} holds {', '.join(roles)}")
        return roles[role]

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files (`unchanged` is the way to read it); raises BundleError where there is no such file."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} has no file {printable(repr(name))}; it holds {printable(', '.join(self.manifest.files))}")
        return self.path / name

    @contextlib.contextmanager
    def unchanged(self, name: str) -> Iterator[Path]:
        """Yields the path of a file for a library that opens it; raises BundleError where, before or after, the bundle has changed."""
        path = self.file(name)
        self.check_unchanged()
        yield path
        self.check_unchanged()

    def read(self, name: str, most_bytes: int) -> bytes:
        """The content of a file; raises BundleError where there is none, it has more than `most_bytes`, or the bundle has changed."""
        with self.unchanged(name), _open(self.path, name) as stream:
            if _identity(os.fstat(stream.fileno())) != self.identities[name]:
                raise self._changed(name)
            return strict.read_bounded(stream, most_bytes)

    def check_unchanged(self) -> None:
        """Raises BundleError where a file was changed, replaced or removed since the bundle was opened."""
        for name, identity in self.identities.items():
            try:
                found = _identity(os.lstat(self.path / name))
            except OSError as cause:
                raise self._changed(name) from cause
            if found != identity:
                raise self._changed(name)

    def _changed(self, name: str) -> BundleError:
        return BundleError(f"{self.path} changed since it was opened ({printable(name)} is another file now); open the bundle again")


def seal(root: Path, manifest: Manifest, digests: Mapping[str, FileDigest] | None = None) -> Manifest:
    """Writes prtool.json last, with the size and SHA-256 of every file now under `root`; `digests`, by name, are not computed again."""
    names = sorted(str(item.relative_to(root).as_posix()) for item in root.rglob("*") if item.is_file())
    known = digests or {}
    files = {name: known.get(name) or FileDigest.of(root / name) for name in names if name != MANIFEST_NAME}
    complete = dataclasses.replace(manifest, files=files)
    write_bytes(root / MANIFEST_NAME, sealed(complete.to_json()))
    return complete


def _read_manifest(root: Path) -> tuple[object, FileIdentity]:
    if not os.path.lexists(root / MANIFEST_NAME):
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST_NAME}; make one with 'prtool export -o {root}'")
    with _open(root, MANIFEST_NAME) as stream:
        return unseal(strict.read_bounded(stream, MANIFEST_BYTES)), _identity(os.fstat(stream.fileno()))


def _identity(status: os.stat_result) -> FileIdentity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _open(root: Path, name: str) -> Iterator[BinaryIO]:
    """Opens a file of the bundle, unbuffered; no part of its name may be a link.

    What it is instead of a regular file, and an OSError or ValueError of the body, raises BundleError.
    """
    path = root / name
    for folder in reversed(Path(name).parents[:-1]):
        if (root / folder).is_symlink():
            raise BundleError(f"{root / folder} is a link, and a bundle holds plain files only; copy the bundle with its links resolved")
    try:
        with strict.open_regular(path, follow_links=False, buffering=0) as stream:
            yield stream
    except FileNotFoundError as cause:
        raise BundleError(f"{path} is missing; copy the whole bundle again, or export it again") from cause
    except (OSError, ValueError) as cause:
        # ValueError: no regular file, a null byte in the name, too large, or not what its seal says.
        reason = "it is a link" if path.is_symlink() else getattr(cause, "strerror", None) or printable(cause)
        raise BundleError(f"{path} cannot be used: {reason}; export the bundle again") from cause


def _check_content(stream: BinaryIO, path: Path, digest: FileDigest, verify: bool) -> FileIdentity:
    """Checks size and SHA-256 against the manifest."""
    identity = _identity(os.fstat(stream.fileno()))
    if (size := identity[2]) != digest.size:
        raise BundleError(f"{path} has {size} bytes, but the manifest says {digest.size}; copy or export the bundle again")
    # Opened unbuffered, so it is a FileIO.
    if verify and (found := hashlib.file_digest(cast(io.FileIO, stream), "sha256").hexdigest()) != digest.sha256:
        raise BundleError(f"checksum mismatch: {path} (expected {digest.sha256[:12]}, found {found[:12]}); copy or export it again")
    return identity


def holds_only_listed(folder: Path, manifest_name: str = MANIFEST_NAME) -> bool:
    """Whether a folder holds a manifest, of whatever schema, and nothing that this does not list."""
    manifest = folder / manifest_name
    # Asked first: a folder that is no bundle may be the root of a disk.
    found = list(folder.rglob("*")) if manifest.is_file() else []
    if not found or any(item.is_symlink() or not (item.is_file() or item.is_dir()) for item in found):
        return False
    try:
        value = strict.parse_json(strict.read_regular(manifest, MANIFEST_BYTES))
    except (OSError, ValueError):
        return False
    listed = value.get("files") if isinstance(value, dict) else None
    if not isinstance(listed, dict) or "schema" not in value:
        return False
    names = {manifest_name, *listed}
    folders = {parent.as_posix() for name in names for parent in Path(name).parents}
    return all(item.relative_to(folder).as_posix() in (folders if item.is_dir() else names) for item in found)


BUNDLE = OutputKind("a bundle, with nothing else in it", holds_only_listed, is_folder=True)
