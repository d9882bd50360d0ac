"""Stored tensors: safetensors files with a digest of their content and the key of all that it depends on; `prtool.stored` for tensors."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prtool.files import write_bytes
from prtool.sealed import seal, unseal
from prtool.stored import note_damage

_STAMP = "prtool"


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """What was kept: tensors by name, mapped from the file, and plain JSON facts."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def keep_tensors(path: Path, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, object] | None = None) -> None:
    """Keeps tensors under the key of all that they depend on, for `recall_tensors`.

    Args:
        path: the file; it is replaced as a whole.
        key: of all that the tensors depend on.
        tensors: by name, of any shape and dtype.
        facts: plain JSON that belongs to them.

    Raises:
        StorageError: the file cannot be written; whatever stood at `path` is untouched.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    stamp = seal({"key": key, "facts": dict(facts or {}), "sha256": tensors_digest(plain)})
    # One entry: safetensors writes several in any order, and equal files would differ in their bytes.
    write_bytes(path, save(plain, metadata={_STAMP: stamp.decode()}))


def recall_tensors(path: Path, key: str) -> StoredTensors | None:
    """What was kept under this key; None where there is nothing, it is of another key, or (with a note) it is damaged.

    Every byte is read and hashed, at 1 to 2 GB/s with SHA-256 instructions.
    """
    try:
        if not path.is_file():
            if path.exists():
                raise ValueError("it is not a regular file")
            return None
        with safe_open(path, framework="pt") as stored:
            stamp = unseal((stored.metadata() or {}).get(_STAMP, "").encode())
            tensors = {name: stored.get_tensor(name) for name in list(stored.keys())}
        if tensors_digest(tensors) != stamp["sha256"]:
            raise ValueError("its tensors are not those of its digest")
    except (SafetensorError, OSError, ValueError, KeyError) as cause:
        note_damage(path, cause)
        return None
    return StoredTensors(tensors, stamp["facts"]) if stamp["key"] == key else None


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over contiguous CPU tensors: name, dtype, shape and bytes of each, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
