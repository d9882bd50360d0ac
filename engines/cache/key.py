"""What a built engine depends on: everything that makes a stored one stale when it changes."""

import dataclasses
import hashlib
import json
import mmap
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from prtool.files import sha256_file

NO_DEVICE = "no device"
_DIGEST_CHARACTERS = 32
_SHOWN_DIGEST_CHARACTERS = 12
# How protobuf writes {key: "location", value: NAME} of a tensor whose data lie in a file of their own.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f])")


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Names one built engine; two builds with equal keys are interchangeable.

    Attributes:
        onnx_sha256: digest of the graph, as `onnx_digest` makes it.
        precision: the arithmetic asked for.
        profiles: the shape ranges, in words.
        builder: the builder's options, in words.
        library, library_version: what builds it.
        device, compute_capability, driver: the GPU and its driver; `NO_DEVICE` each, for a build without one.
        system, architecture: operating system and CPU architecture.
    """

    onnx_sha256: str
    precision: str
    profiles: str
    builder: str
    library: str
    library_version: str
    device: str = NO_DEVICE
    compute_capability: str = NO_DEVICE
    driver: str = NO_DEVICE
    system: str = dataclasses.field(default_factory=platform.system)
    architecture: str = dataclasses.field(default_factory=platform.machine)

    @property
    def digest(self) -> str:
        """The name of the engine's folder in a cache: 32 hexadecimal digits over every field."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]

    def changes_since(self, earlier: "EngineKey") -> list[str]:
        """Each field that differs, as "device changed from 'A' to 'B'"."""
        names = [item.name for item in dataclasses.fields(self)]
        pairs = [(name, getattr(earlier, name), getattr(self, name)) for name in names]
        return [f"{name} changed from {_shown(name, old)!r} to {_shown(name, new)!r}" for name, old, new in pairs if old != new]


def onnx_digest(path: Path) -> str:
    """The SHA-256 of an ONNX file and of the files beside it that hold its weights, in hexadecimal.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256(sha256_file(path).encode())
    for name in _external_files(path):
        digest.update(f"{name} {sha256_file(path.parent / name)}".encode())
    return digest.hexdigest()


def _external_files(path: Path) -> list[str]:
    """Names of the files that the graph's tensors point to, of those that exist: the parser complains about the others."""
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        names = {content[hit.end() : hit.end() + hit.group(1)[0]] for hit in _LOCATION.finditer(content)}
    texts = sorted(name.decode("utf-8", "replace") for name in names)
    return [text for text in texts if text.isprintable() and (path.parent / text).is_file()]


def _shown(field: str, value: str) -> str:
    return value[:_SHOWN_DIGEST_CHARACTERS] if field == "onnx_sha256" else value
