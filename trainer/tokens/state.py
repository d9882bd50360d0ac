"""What tuning of tokens saves after each epoch, and goes on from."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from prtool.trainer.models.prompts import TextContext, VisualTokens
from prtool.trainer.stored_tensors import keep_tensors, recall_tensors

_BEST, _LAST, _MOMENTUM = "best.", "last.", "momentum."


@dataclass(frozen=True, slots=True)
class TuningEpoch:
    """Where tuning stood after an epoch.

    Attributes:
        loss: mean over the training images; 0 for the untuned encoder, which was not trained.
        cosine: mean cosine to the unpruned embedding on the validation images.
        accuracy: zero-shot, on the validation images, in percent; None without labels.
    """

    loss: float
    cosine: float
    accuracy: float | None


@dataclass(slots=True)
class TuningState:
    """What changes while tokens are tuned.

    Attributes:
        visual: the visual tokens; None where none are learned.
        context: the text context, likewise.
        sgd: what moves them.
        best: a copy of the tokens of `best_epoch`; empty while that is 0.
        history: the untuned encoder first, then each epoch.
        best_epoch: 0 for the untuned encoder.
    """

    visual: VisualTokens | None
    context: TextContext | None
    sgd: torch.optim.SGD
    best: dict[str, Tensor]
    history: list[TuningEpoch] = field(default_factory=list)
    best_epoch: int = 0

    def values(self) -> dict[str, Tensor]:
        """A copy of the tokens."""
        parts = {"visual": self.visual, "context": self.context}
        return {name: part.values.detach().clone() for name, part in parts.items() if part is not None}

    def set_values(self, values: dict[str, Tensor]) -> None:
        """Sets the tokens to what `values` gave."""
        for name, part in (("visual", self.visual), ("context", self.context)):
            if part is not None:
                part.values.data.copy_(values[name])


def save_state(current: TuningState, path: Path, key: str) -> None:
    """Writes the state.

    Args:
        current: what is written.
        path: the file; it is replaced as a whole.
        key: says which tuning the state belongs to.

    Raises:
        StorageError: it cannot be written.
    """
    tensors = {_BEST + name: tensor for name, tensor in current.best.items()}
    tensors |= {_LAST + name: tensor for name, tensor in current.values().items()}
    for number, moments in current.sgd.state_dict()["state"].items():
        if moments.get("momentum_buffer") is not None:
            tensors[f"{_MOMENTUM}{number}"] = moments["momentum_buffer"]
    history = [[epoch.loss, epoch.cosine, epoch.accuracy] for epoch in current.history]
    keep_tensors(path, key, tensors, {"best_epoch": current.best_epoch, "history": history})


def restore_state(current: TuningState, path: Path, key: str) -> None:
    """Continues from a saved state, if it is whole and belongs to this tuning."""
    found = recall_tensors(path, key)
    if found is None:
        return
    current.set_values(found.part(_LAST))
    current.best = found.part(_BEST)
    moments = {int(number): {"momentum_buffer": tensor} for number, tensor in found.part(_MOMENTUM).items()}
    current.sgd.load_state_dict({"state": moments, "param_groups": current.sgd.state_dict()["param_groups"]})
    current.history = [TuningEpoch(*entry) for entry in found.facts["history"]]
    current.best_epoch = found.facts["best_epoch"]
