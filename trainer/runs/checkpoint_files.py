"""The files next to a checkpoint's record, named after their content.

A checkpoint that is saved over another leaves the earlier one's files alone until its own record stands.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from prtool.errors import CheckpointError
from prtool.exchange import sweep
from prtool.files import storage_errors
from prtool.manifest import FileDigest
from prtool.strict import read_regular

TENSORS, SEEN = "tensors", "seen"
"""The kinds of files: tensors of the scorers and tokens, fingerprints of the images that the run has seen."""

_NAME = re.compile(r"[a-z]+-[0-9a-f]{16}\.[a-z]+")


def name_files(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """The content of each kind of file by the file's name."""
    return {f"{kind}-{digest_of(content).sha256[:16]}.safetensors": content for kind, content in contents.items()}


def digest_of(content: bytes) -> FileDigest:
    """Size and SHA-256 of a file's bytes."""
    return FileDigest(len(content), hashlib.sha256(content).hexdigest())


def has_file(files: Mapping[str, FileDigest], kind: str) -> bool:
    """Whether a record names a file of this kind."""
    return any(name.startswith(f"{kind}-") for name in files)


def read_file(home: Path, files: Mapping[str, FileDigest], kind: str) -> bytes:
    """The one file of a kind that a record names, checked.

    Raises:
        CheckpointError: the record names none or several, or the file is missing, damaged or changed.
    """
    names = [name for name in files if name.startswith(f"{kind}-") and _NAME.fullmatch(name)]
    if len(names) != 1:
        raise CheckpointError(f"the record of {home} names {len(names)} files of {kind}, but it must name one; run 'prtool train' again")
    path, digest = home / names[0], files[names[0]]
    try:
        content = read_regular(path, digest.size)
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"{path} cannot be read ({cause}); run 'prtool train' again") from cause
    if digest_of(content) != digest:
        raise CheckpointError(f"{path} was changed: its SHA-256 is not the record's; run 'prtool train' again")
    return content


def remove_others(home: Path, files: Mapping[str, FileDigest]) -> None:
    """Removes the files of earlier checkpoints, and what killed processes left of them.

    Raises:
        StorageError: one cannot be removed.
    """
    with storage_errors(home):
        for path in home.iterdir():
            found = _NAME.search(path.name)
            if found and found[0] not in files:
                (home / found[0]).unlink(missing_ok=True)
                sweep(home / found[0])
