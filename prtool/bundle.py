"""The bundle: a directory of graphs and a manifest, the only interface between training, export, engines and languages."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from prtool.errors import BundleError, ConfigError
from prtool.files import sha256_file, write_json
from prtool.manifest import FileDigest, GraphSpec, Manifest

MANIFEST_NAME = "prtool.json"
_WINDOWS_RESERVED = set('\\:*?"<>|')


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. Reading it never runs code from it."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Bundle":
        """Opens a bundle directory.

        Args:
            path: the directory that holds prtool.json.
            verify: check every file's size and SHA-256 (about 1 s a GB); sizes are always checked.

        Raises:
            BundleError: not a bundle, unknown schema, unsafe name, or a file missing, changed or a link.
        """
        root = Path(path)
        manifest = Manifest.from_json(_read_json(root))
        for name, digest in manifest.files.items():
            _check_file(root, name, digest, verify)
        for role, graph in ((role, graph) for roles in manifest.graphs.values() for role, graph in roles.items()):
            if graph.file not in manifest.files:
                raise BundleError(f"graph {role!r} names {graph.file!r}, which is not among the bundle's files; export the bundle again")
        return cls(root, manifest)

    def graph(self, role: str, precision: str = "fp32") -> GraphSpec:
        """The graph of one role.

        Raises:
            ConfigError: the bundle has no such precision or role.
        """
        roles = self.manifest.graphs.get(precision)
        if roles is None:
            known = ", ".join(self.manifest.graphs)
            raise ConfigError(f"precision = {precision!r}, but {self.path} holds {known}; export it with --precision {precision}")
        if role not in roles:
            raise ConfigError(f"graph = {role!r}, but {self.path} holds {', '.join(roles)}")
        return roles[role]

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files.

        Raises:
            BundleError: the bundle has no such file.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} has no file {name!r}; it holds {', '.join(self.manifest.files)}")
        return self.path / name


def seal(root: Path, manifest: Manifest) -> Manifest:
    """Writes prtool.json last, with the size and SHA-256 of every file now under `root`; returns the sealed manifest."""
    names = sorted(str(item.relative_to(root).as_posix()) for item in root.rglob("*") if item.is_file())
    files = {name: FileDigest((root / name).stat().st_size, sha256_file(root / name)) for name in names if name != MANIFEST_NAME}
    sealed = replace(manifest, files=files)
    write_json(root / MANIFEST_NAME, sealed.to_json())
    return sealed


def _read_json(root: Path) -> object:
    path = root / MANIFEST_NAME
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as cause:
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST_NAME}; make one with 'prtool export -o {root}'") from cause
    except (OSError, ValueError, RecursionError) as cause:
        raise BundleError(f"{path} cannot be read ({cause}); export the bundle again") from cause


def _check_file(root: Path, name: str, digest: FileDigest, verify: bool) -> None:
    parts = name.split("/")
    if not name or name.startswith("/") or any(part in ("", ".", "..") for part in parts) or _WINDOWS_RESERVED & set(name):
        raise BundleError(f"the manifest names {name!r}, which is not a plain relative path inside the bundle; do not use this bundle")
    path = root
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise BundleError(f"{path} is a link, and a bundle holds plain files only; copy the bundle with its links resolved")
    if not path.is_file():
        raise BundleError(f"{path} is missing; copy the whole bundle again, or export it again")
    size = path.stat().st_size
    if size != digest.size:
        raise BundleError(f"{path} has {size} bytes, but the manifest says {digest.size}; copy or export the bundle again")
    if verify and sha256_file(path) != digest.sha256:
        raise BundleError(f"{path} was changed: its SHA-256 is not the manifest's; copy or export the bundle again")
