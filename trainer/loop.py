"""The training loop of a patch scorer: seeded, resumable, best epoch by validation matching rate."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from prtool.errors import ConfigError, ModelError, ShapeError
from prtool.progress import Progress, SilentProgress, stage
from prtool.trainer.features import Features
from prtool.trainer.models.predictor import PatchScorer
from prtool.trainer.objectives.losses import loss_named
from prtool.trainer.objectives.matching import default_count, matching_rate, order_of
from prtool.trainer.settings import FitConfig
from prtool.trainer.stored_tensors import keep_tensors, recall_tensors

SCHEMA = 1
_BEST, _LAST, _ADAM = "best.", "last.", "adam."


@dataclass(frozen=True, slots=True)
class Examples:
    """What a scorer learns from.

    Attributes:
        features: the tokens of each image.
        ranking: (images, N) integer, golden ranking, most to least important.
        golden: (images, N) float32, golden scores by patch, high = prune first.
        subsets: each step shows a random part of every image's patches, so that the scorer learns to order any that are left;
            for scorers that take their tokens as a set, as those of later locations do.
    """

    features: Features
    ranking: Tensor
    golden: Tensor
    subsets: bool = False

    def __post_init__(self) -> None:
        if len(self.features) != len(self.ranking) or self.ranking.shape != self.golden.shape or not len(self.ranking):
            raise ShapeError(
                f"tokens of {len(self.features)} images, rankings {tuple(self.ranking.shape)} and golden scores "
                f"{tuple(self.golden.shape)} do not belong together; give the same images, at least one"
            )


@dataclass(frozen=True, slots=True)
class Epoch:
    """Mean training loss of an epoch, and the score on the validation images after it: matching rate @m, or cosine."""

    loss: float
    score: float


@dataclass(frozen=True, slots=True)
class FitResult:
    """A trained scorer, holding the weights of `best_epoch` (from 1), and what happened in each epoch.

    `match_at` is the m of the matching rate that chose it; 0 where another measure did.
    """

    scorer: PatchScorer
    history: tuple[Epoch, ...]
    best_epoch: int
    match_at: int = 0


@dataclass(slots=True)
class _State:
    """Where training stands after `len(history)` epochs."""

    scorer: PatchScorer
    adam: torch.optim.Adam
    best: dict[str, Tensor]
    history: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0


class Lesson(Protocol):
    """What a scorer learns, and how well it did."""

    def __len__(self) -> int:
        """The training images."""
        ...

    def parts(self) -> Iterable[Tensor]:
        """Every tensor that the result depends on; they tell one training's saved state from another's."""
        ...

    def loss(self, scorer: PatchScorer, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss of one step over the images `chosen` (batch,) int64."""
        ...

    def judge(self, scorer: PatchScorer) -> float:
        """How good the scorer is on the validation images; higher is better."""
        ...


class RankingLesson:
    """The golden order of patches, by one of `LOSSES`; judged by the matching rate @m."""

    def __init__(self, train: Examples, val: Examples, config: FitConfig, match_at: int) -> None:
        self._train, self._val, self._config, self._match_at = train, val, config, match_at
        self._loss = loss_named(config.loss)

    def __len__(self) -> int:
        return len(self._train.ranking)

    def parts(self) -> Iterable[Tensor]:
        """Tokens, rankings and golden scores, and whether a step shows a part of them."""
        for data in (self._train, self._val):
            yield from (*data.features.shards, data.ranking, data.golden)
        yield torch.tensor(self._train.subsets)

    def loss(self, scorer: PatchScorer, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """See `Lesson.loss`."""
        config, device = self._config, _device(scorer)
        tokens = noisy(self._train.features.batch(chosen.tolist()), config.noise, generator)
        ranking, golden = self._train.ranking[chosen].long(), self._train.golden[chosen]
        if self._train.subsets:
            tokens, ranking, golden = _subset(tokens, ranking, golden, generator)
        return self._loss(scorer(tokens.to(device)), ranking.to(device), golden.to(device), generator)

    def judge(self, scorer: PatchScorer) -> float:
        """The matching rate @m."""
        return matching_rate(order_of(predict(scorer, self._val.features)), self._val.ranking, self._match_at)


def fit(
    scorer: PatchScorer, train: Examples, val: Examples, config: FitConfig, state: Path | None = None, progress: Progress | None = None
) -> FitResult:
    """Trains a scorer in place on golden rankings; see `learn`.

    Args:
        scorer: freshly initialised; on the device to train on.
        train: what is learned.
        val: what chooses the best epoch, by its matching rate.
        config: how.
        state: see `learn`.
        progress: hears about epochs.

    Raises:
        ConfigError: m of the matching rate is above N.
        StorageError: the state cannot be written.
    """
    match_at = config.match_at or default_count(scorer.patches)
    if match_at > scorer.patches:
        raise ConfigError(f"fit match_at = {match_at}, but there are {scorer.patches} patches; give 1 to {scorer.patches}, or 0 for the default")
    return replace(learn(scorer, RankingLesson(train, val, config, match_at), config, state, progress), match_at=match_at)


def learn(scorer: PatchScorer, lesson: Lesson, config: FitConfig, state: Path | None = None, progress: Progress | None = None) -> FitResult:
    """Trains a scorer in place, and leaves it with the weights of its best epoch, the first of equals.

    Args:
        scorer: freshly initialised; on the device to train on.
        lesson: what is learned, and what judges an epoch.
        config: epochs, batch, learning rates and seed.
        state: file that training is saved to every few epochs and goes on from, with the same result as if it had
            not been stopped; one that belongs to other data, scorer or settings, or is damaged (with a note), is replaced.
        progress: hears about epochs.

    Raises:
        ModelError: the loss or the validation score is NaN or infinite.
        StorageError: the state cannot be written.
    """
    progress = progress or SilentProgress()
    adam = torch.optim.Adam(scorer.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    key = _key(scorer, config, lesson) if state else ""
    current = _State(scorer, adam, _weights(scorer))
    if state is not None:
        _restore(current, state, key)
    with stage(progress, "training the predictor (epochs)", config.epochs):
        progress.advance(len(current.history))
        for epoch in range(len(current.history), config.epochs):
            trained = _train_epoch(current, lesson, config, epoch)
            score = lesson.judge(scorer)
            if not math.isfinite(score):
                raise ModelError(f"the predictor's score on the validation images is {score} in epoch {epoch + 1}; check the model's weights")
            if not current.best_epoch or score > current.history[current.best_epoch - 1].score:
                current.best, current.best_epoch = _weights(scorer), epoch + 1
            current.history.append(Epoch(trained, score))
            if state is not None and ((epoch + 1) % config.save_every == 0 or epoch + 1 == config.epochs):
                _save(current, state, key)
            progress.advance()
    scorer.load_state_dict(current.best)
    scorer.eval()
    return FitResult(scorer, tuple(current.history), current.best_epoch)


def noisy(tokens: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Tokens with Gaussian noise of `noise` times their standard deviation; none is drawn for 0."""
    return tokens + noise * tokens.std() * torch.randn(tokens.shape, generator=generator) if noise else tokens


@torch.inference_mode()
def predict(scorer: PatchScorer, features: Features, batch: int = 64) -> Tensor:
    """The scores of every image: (images, N) float32 on the CPU, high = keep."""
    device = _device(scorer)
    chunks = [range(start, min(start + batch, len(features))) for start in range(0, len(features), batch)]
    return torch.cat([scorer(features.batch(chunk).to(device)).float().cpu() for chunk in chunks])


def _train_epoch(current: _State, lesson: Lesson, config: FitConfig, epoch: int) -> float:
    # One generator an epoch: what it draws does not depend on where an earlier run was stopped.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    for group in current.adam.param_groups:
        group["lr"] = config.lr_at(epoch)
    current.scorer.train()
    total = 0.0
    for chosen in torch.split(torch.randperm(len(lesson), generator=generator), config.batch):
        value = lesson.loss(current.scorer, chosen, generator)
        current.adam.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        current.adam.step()
        total += float(value.detach()) * len(chosen)
    current.scorer.eval()
    if not math.isfinite(total):
        raise ModelError(f"the predictor's loss is {total} in epoch {epoch + 1}; lower the learning rate, or check the model's weights")
    return total / len(lesson)


def _subset(tokens: Tensor, ranking: Tensor, golden: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The same number of random patches of each image, from a quarter of them to all, numbered anew.

    Args:
        tokens: (batch, prefix + N, D).
        ranking: (batch, N) int64, most to least important.
        golden: (batch, N) by patch.
        generator: draws the number and the patches.
    """
    batch, patches = ranking.shape
    count = int(torch.randint(max(1, patches // 4), patches + 1, (), generator=generator))
    shown = torch.rand(batch, patches, generator=generator).argsort(dim=1)[:, :count].sort(dim=1).values
    number = torch.full((batch, patches), -1).scatter_(1, shown, torch.arange(count).expand(batch, -1))
    renumbered = number.gather(1, ranking)
    prefix = tokens.shape[1] - patches
    rows = torch.cat((torch.arange(prefix).expand(batch, -1), shown + prefix), dim=1)
    part = tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
    return part, renumbered[renumbered >= 0].view(batch, count), golden.gather(1, shown)


def _device(scorer: PatchScorer) -> torch.device:
    return next(scorer.parameters()).device


def _weights(scorer: PatchScorer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in scorer.state_dict().items()}


def _key(scorer: PatchScorer, config: FitConfig, lesson: Lesson) -> str:
    """Says which training a saved state belongs to: settings, initial weights and data."""
    digest = hashlib.sha256(json.dumps([SCHEMA, type(lesson).__name__, asdict(config), asdict(scorer.config)], sort_keys=True).encode())
    for tensor in (*(tensor for _, tensor in sorted(scorer.state_dict().items())), *lesson.parts()):
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(current: _State, path: Path, key: str) -> None:
    tensors = {_BEST + name: tensor for name, tensor in current.best.items()}
    tensors |= {_LAST + name: tensor for name, tensor in _weights(current.scorer).items()}
    for number, moments in current.adam.state_dict()["state"].items():
        tensors |= {f"{_ADAM}{number}.{name}": tensor for name, tensor in moments.items()}
    history = [[epoch.loss, epoch.score] for epoch in current.history]
    keep_tensors(path, key, tensors, {"best_epoch": current.best_epoch, "history": history})


def _restore(current: _State, path: Path, key: str) -> None:
    """Continues from a saved state, if it is whole and belongs to this training."""
    found = recall_tensors(path, key)
    if found is None:
        return
    current.scorer.load_state_dict(found.part(_LAST))
    current.best = {name: tensor.to(_device(current.scorer)) for name, tensor in found.part(_BEST).items()}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in found.part(_ADAM).items():
        number, _, what = name.partition(".")
        moments.setdefault(int(number), {})[what] = tensor
    current.adam.load_state_dict({"state": moments, "param_groups": current.adam.state_dict()["param_groups"]})
    current.history = [Epoch(*entry) for entry in found.facts["history"]]
    current.best_epoch = found.facts["best_epoch"]
