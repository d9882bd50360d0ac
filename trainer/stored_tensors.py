"""The former functions of `prtool.trainer.store`, until their callers use `TensorStore`."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from prtool.trainer.store import StoredTensors, TensorStore, tensors_digest

__all__ = ["keep_tensors", "recall_tensors", "tensors_digest"]


def keep_tensors(path: Path, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, object] | None = None) -> None:
    """See `TensorStore.write_tensors`."""
    TensorStore(path.parent, key).write_tensors(path.name, tensors, facts)


def recall_tensors(path: Path, key: str) -> StoredTensors | None:
    """See `TensorStore.read_tensors`."""
    return TensorStore(path.parent, key).read_tensors(path.name)
