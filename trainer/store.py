"""The store of `prtool.store` for tensors: safetensors files with a sealed digest of their content."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prtool.errors import StorageError
from prtool.files import write_bytes
from prtool.progress import Progress
from prtool.store import Store, seal, unseal

_STAMP = "prtool"


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """An entry: tensors by name, mapped from the file, and plain JSON facts."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


class TensorStore(Store):
    """A `Store` whose entries may hold tensors."""

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, object] | None = None) -> None:
        """Stores tensors by name, of any shape and dtype, and plain JSON facts about them.

        Raises:
            StorageError: the file cannot be written; an earlier entry stays.
        """
        if self.folder is None:
            return
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        stamp = seal({**self._owner(name), "facts": dict(facts or {}), "sha256": tensors_digest(plain)})
        # One entry of metadata: safetensors writes several in any order, and equal files would differ in their bytes.
        write_bytes(self.folder / name, save(plain, metadata={_STAMP: stamp.decode()}))

    def read_tensors(self, name: str) -> StoredTensors | None:
        """The tensors of an entry; None where there is none, or one of another key, or (with a logged warning) a damaged one.

        Every byte is read and hashed, at 1 to 2 GB/s with SHA-256 instructions.
        """
        if self.folder is None or not (path := self.folder / name).exists():
            return None
        try:
            if not path.is_file():
                raise ValueError("it is not a regular file")
            with safe_open(path, framework="pt") as stored:
                stamp = unseal((stored.metadata() or {}).get(_STAMP, "").encode())
                tensors = {key: stored.get_tensor(key) for key in list(stored.keys())}
            if tensors_digest(tensors) != stamp["sha256"]:
                raise ValueError("checksum mismatch of its tensors")
        except (SafetensorError, OSError, ValueError, KeyError) as cause:
            self._warn(name, cause)
            return None
        return StoredTensors(tensors, stamp["facts"]) if self._owns(name, stamp) else None

    def shards(self, count: int, size: int, compute: Callable[[range], Mapping[str, Tensor]], progress: Progress) -> list[Mapping[str, Tensor]]:
        """Tensors of `count` items, in shards of `size` items: each read from its file, or computed and written.

        `compute` gives the tensors of a range of items and advances the progress itself; else it advances by the items of a shard.
        A mapping a shard is returned, mapped from its file where the store has a folder.

        Raises:
            StorageError: a shard cannot be written; finished shards stay.
        """
        found: list[Mapping[str, Tensor]] = []
        for number, start in enumerate(range(0, count, size)):
            name, items = f"{number:05d}.safetensors", range(start, min(start + size, count))
            stored = self.read_tensors(name)
            if stored is not None:
                progress.advance(len(items))
                found.append(stored.tensors)
                continue
            computed = compute(items)
            self.write_tensors(name, computed)
            # Read back, so that a shard of the first call is mapped from its file too and leaves the memory.
            stored = self.read_tensors(name)
            if stored is None and self.folder is not None:
                raise StorageError(f"{self.folder / name} is not what was just written; check the disk, and run the command again")
            found.append(computed if stored is None else stored.tensors)
        return found


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors: name, dtype, shape and bytes of each, in name order."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
