"""Training that resumes: what changes from epoch to epoch, stored after epochs and continued to the same bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prtool.trainer.store import TensorStore

_BEST, _LAST, _OPTIMIZER = "best.", "last.", "optimizer."


@dataclass(slots=True)
class TrainingState:
    """Where training stands.

    Attributes:
        values: the tensors that are trained, by name, without gradients; the optimizer changes them in place.
        optimizer: of those tensors.
        history: the plain numbers of each epoch.
        best: a copy of the values of `best_epoch`; empty while that is 0.
        best_epoch: 0 before the first.
    """

    values: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    history: list[tuple[Any, ...]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0

    def keep_best(self, epoch: int) -> None:
        """Makes the current values those of the best epoch."""
        self.best, self.best_epoch = {name: tensor.detach().clone() for name, tensor in self.values.items()}, epoch

    def set_values(self, values: Mapping[str, Tensor]) -> None:
        """Copies values into those that are trained, on whichever device they are."""
        for name, tensor in self.values.items():
            tensor.detach().copy_(values[name])

    def save(self, store: TensorStore, name: str) -> None:
        """Stores the state.

        Raises:
            StorageError: it cannot be written; an earlier state stays.
        """
        tensors = {_BEST + key: tensor for key, tensor in self.best.items()} | {_LAST + key: tensor for key, tensor in self.values.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{number}.{key}": tensor for key, tensor in moments.items() if tensor is not None}
        store.write_tensors(name, tensors, {"best_epoch": self.best_epoch, "history": self.history})

    def resume(self, store: TensorStore, name: str) -> None:
        """Continues from the stored state; where there is none of the store's key, or a damaged one (with a note), nothing changes."""
        found = store.read_tensors(name)
        if found is None:
            return
        self.set_values(found.part(_LAST))
        self.best, self.best_epoch = found.part(_BEST), found.facts["best_epoch"]
        self.history = [tuple(entry) for entry in found.facts["history"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in found.part(_OPTIMIZER).items():
            number, _, what = key.partition(".")
            moments.setdefault(int(number), {})[what] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
