"""The training loop of a patch scorer: seeded, resumable to the same bytes, best epoch by the score on the validation images."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prtool.errors import ModelError, ShapeError
from prtool.progress import Progress, SilentProgress, stage
from prtool.store import digest
from prtool.trainer.features import Features
from prtool.trainer.models.predictor import PatchScorer
from prtool.trainer.settings import FitConfig, RecoverConfig, TokensConfig
from prtool.trainer.store import TensorStore, tensors_digest

SCHEMA = 1
_BEST, _LAST, _OPTIMIZER = "best.", "last.", "optimizer."


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Tokens of images, and what is to be learned from each: the golden ranking (images, N) integer, most to least important, or the
    embedding of the whole sequence (images, E) float32, L2-normalised."""

    features: Features
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.features) != len(self.targets) or not len(self.targets):
            raise ShapeError(f"tokens of {len(self.features)} images and {len(self.targets)} targets; give one for each image, at least one")


class Objective(ABC):
    """What a scorer is trained for, and how good it is.

    Args:
        train, val: images to learn from and to choose the best epoch by.
        settings: plain JSON of all else that the result depends on, besides the scorer and the loop's settings.
    """

    def __init__(self, train: Examples, val: Examples, *settings: object) -> None:
        self._train, self._val, self._settings = train, val, settings

    def __len__(self) -> int:
        return len(self._train.targets)

    def digest(self) -> str:
        """Of all that the result depends on besides the scorer and the loop's settings."""
        data = [[part.features.digest, tensors_digest({"targets": part.targets})] for part in (self._train, self._val)]
        return digest(type(self).__name__, data, *self._settings)

    @abstractmethod
    def loss(self, scorer: PatchScorer, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss of one step over the images `chosen` (batch,) int64."""

    @abstractmethod
    def judge(self, scorer: PatchScorer) -> float:
        """How good the scorer is on the validation images; higher is better."""


class Epoch(NamedTuple):
    """Mean training loss of an epoch, and the score on the validation images after it: matching rate @m, or cosine."""

    loss: float
    score: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """A trained scorer, holding the weights of `best_epoch` (from 1), and what happened in each epoch."""

    scorer: PatchScorer
    history: tuple[Epoch, ...]
    best_epoch: int


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
        """Stores the state; a StorageError leaves the earlier one."""
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


def train_scorer(
    scorer: PatchScorer, objective: Objective, config: FitConfig, state: Path | None = None, progress: Progress | None = None
) -> FitResult:
    """Trains a scorer in place, and leaves it with the weights of its best epoch, the first of equals.

    Args:
        scorer: freshly initialised; on the device to train on.
        objective: what is learned, and what judges an epoch.
        config: epochs, batch, learning rates and seed.
        state: file that training is saved to every few epochs and continues from, with the same result as if it had
            not been stopped; one that belongs to other data, scorer or settings, or is damaged (with a note), is replaced.
        progress: advanced once per epoch.

    Raises:
        ModelError: the loss or the validation score is NaN or infinite.
        StorageError: the state cannot be written.
    """
    adam = torch.optim.Adam(scorer.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    current = TrainingState(scorer.state_dict(), adam)
    key = digest(SCHEMA, asdict(config), asdict(scorer.config), tensors_digest(current.values), objective.digest())
    store, name = TensorStore(state.parent if state else None, key), state.name if state else ""
    current.resume(store, name)
    with stage(progress := progress or SilentProgress(), "training the predictor (epochs)", config.epochs):
        progress.advance(len(current.history))
        for epoch in range(len(current.history), config.epochs):
            scorer.train()
            loss = train_epoch(adam, partial(objective.loss, scorer), len(objective), config, epoch, repeat(config.lr_at(epoch)))
            scorer.eval()
            score = objective.judge(scorer)
            if not math.isfinite(loss + score):
                raise ModelError(
                    f"the predictor has loss {loss} and score {score} on the validation images in epoch {epoch + 1}; "
                    "lower the learning rate, or check the model's weights"
                )
            if all(score > earlier for _, earlier in current.history):
                current.keep_best(epoch + 1)
            current.history.append((loss, score))
            if (epoch + 1) % config.save_every == 0 or epoch + 1 == config.epochs:
                current.save(store, name)
            progress.advance()
    current.set_values(current.best)
    scorer.eval()
    return FitResult(scorer, tuple(Epoch(*entry) for entry in current.history), current.best_epoch)


def train_epoch(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    images: int,
    config: FitConfig | TokensConfig | RecoverConfig,
    epoch: int,
    rates: Iterable[float],
) -> float:
    """One pass over the images in random order: the mean of `loss(chosen, generator)`; it ends early where that is not finite.

    `rates` are the learning rates of its steps.
    """
    # One generator an epoch: what it draws does not depend on where an earlier run was stopped.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    total = 0.0
    for rate, chosen in zip(rates, torch.split(torch.randperm(images, generator=generator), config.batch), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = loss(chosen, generator)
        total += float(value.detach()) * len(chosen)
        if not math.isfinite(total):
            break
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return total / images


@torch.inference_mode()
def predict(scorer: PatchScorer, features: Features, batch: int = 64) -> Tensor:
    """The scores of every image: (images, N) float32 on the CPU, high = keep."""
    device = next(scorer.parameters()).device
    chunks = torch.split(torch.arange(len(features)), batch)
    return torch.cat([scorer(features.batch(chunk.tolist()).to(device)).float().cpu() for chunk in chunks])
