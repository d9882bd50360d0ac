"""The training loop of a patch scorer: seeded, resumable, best epoch by the score on the validation images."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from prtool.errors import ModelError
from prtool.progress import Progress, SilentProgress, stage
from prtool.store import digest
from prtool.trainer.features import Features
from prtool.trainer.models.predictor import PatchScorer
from prtool.trainer.settings import FitConfig
from prtool.trainer.store import TensorStore, tensors_digest
from prtool.trainer.training_state import TrainingState

SCHEMA = 1


class Objective(Protocol):
    """What a scorer is trained for, and how good it is."""

    def __len__(self) -> int:
        """The training images."""
        ...

    def digest(self) -> str:
        """Of all that the result depends on besides the scorer and the loop's settings."""
        ...

    def loss(self, scorer: PatchScorer, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss of one step over the images `chosen` (batch,) int64."""
        ...

    def judge(self, scorer: PatchScorer) -> float:
        """How good the scorer is on the validation images; higher is better."""
        ...


@dataclass(frozen=True, slots=True)
class Epoch:
    """Mean training loss of an epoch, and the score on the validation images after it: matching rate @m, or cosine."""

    loss: float
    score: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """A trained scorer, holding the weights of `best_epoch` (from 1), and what happened in each epoch."""

    scorer: PatchScorer
    history: tuple[Epoch, ...]
    best_epoch: int


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
    key = digest(SCHEMA, asdict(config), asdict(scorer.config), tensors_digest(current.values), type(objective).__name__, objective.digest())
    store, name = TensorStore(state.parent if state else None, key), state.name if state else ""
    current.resume(store, name)
    with stage(progress := progress or SilentProgress(), "training the predictor (epochs)", config.epochs):
        progress.advance(len(current.history))
        for epoch in range(len(current.history), config.epochs):
            loss, score = _train_epoch(scorer, adam, objective, config, epoch), objective.judge(scorer)
            if not math.isfinite(score):
                raise ModelError(f"the predictor's score on the validation images is {score} in epoch {epoch + 1}; check the model's weights")
            if all(score > earlier for _, earlier in current.history):
                current.keep_best(epoch + 1)
            current.history.append((loss, score))
            if (epoch + 1) % config.save_every == 0 or epoch + 1 == config.epochs:
                current.save(store, name)
            progress.advance()
    current.set_values(current.best)
    scorer.eval()
    return FitResult(scorer, tuple(Epoch(*entry) for entry in current.history), current.best_epoch)


@torch.inference_mode()
def predict(scorer: PatchScorer, features: Features, batch: int = 64) -> Tensor:
    """The scores of every image: (images, N) float32 on the CPU, high = keep."""
    device = next(scorer.parameters()).device
    chunks = [range(start, min(start + batch, len(features))) for start in range(0, len(features), batch)]
    return torch.cat([scorer(features.batch(chunk).to(device)).float().cpu() for chunk in chunks])


def _train_epoch(scorer: PatchScorer, adam: torch.optim.Adam, objective: Objective, config: FitConfig, epoch: int) -> float:
    # One generator an epoch: what it draws does not depend on where an earlier run was stopped.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    for group in adam.param_groups:
        group["lr"] = config.lr_at(epoch)
    scorer.train()
    total = 0.0
    for chosen in torch.split(torch.randperm(len(objective), generator=generator), config.batch):
        value = objective.loss(scorer, chosen, generator)
        adam.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        adam.step()
        total += float(value.detach()) * len(chosen)
    scorer.eval()
    if not math.isfinite(total):
        raise ModelError(f"the predictor's loss is {total} in epoch {epoch + 1}; lower the learning rate, or check the model's weights")
    return total / len(objective)
