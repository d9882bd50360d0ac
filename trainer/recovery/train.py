"""Train recovery: corrections of the blocks that see shortened sequences, taught by the unpruned embeddings, without labels."""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prtool.errors import DataError, ModelError
from prtool.manifest import RecoveryInfo
from prtool.progress import Progress, SilentProgress, stage
from prtool.spec import NONE, Keep, PruneSpec
from prtool.store import digest
from prtool.trainer.data.copies import Copies
from prtool.trainer.data.images import ImageSet, equally_spaced
from prtool.trainer.data.seen import fingerprints
from prtool.trainer.loop import TrainingState, train_epoch
from prtool.trainer.models.dual_encoder import DualEncoder, content_digest
from prtool.trainer.models.recovery import Recovery
from prtool.trainer.models.reduced import ReducedEncoder
from prtool.trainer.models.tower import resolve_precision
from prtool.trainer.recovery.data import Taught, teach
from prtool.trainer.recovery.shortened import Shortened, shortened, taps_of
from prtool.trainer.settings import RecoverConfig
from prtool.trainer.store import TensorStore, tensors_digest

SCHEMA = 2
LEAST_IMAGES = 32
"""Training images that recovery needs at least."""
SCALES = (0.25, 0.5, 0.75, 1.0)
"""Of which the corrections get the best, if the encoder is better with them."""
ONE_KIND = 20.0
"""Images whose embeddings vary in fewer directions are of one kind: pets, textures or satellite images alone have 8 to 18, a mixture 27 to 37."""
_JUDGED_KEEPS, _HIGHEST = 4, 0.85
_JUDGEMENTS = 8
"""Of few images there are many passes; judging each would take longer than they do."""
_ANCHOR = 0.1
"""Share of the steps that keep every patch."""
_BATCH = 16
_TINY = 1e-9
_FLOOR = 0.05
"""Errors of a step are relative to at least this share of the largest error without corrections."""
_NEGLIGIBLE = 0.01
"""An error below this share of the largest one counts as none where keeps are judged."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class RecoverTask:
    """What is recovered.

    Attributes:
        model: the frozen encoder.
        encoder: the same with its reducer, without learnable tokens, on the same device.
        train: images to learn from.
        val: images that choose the best pass and the scale.
        cache: folder of what the frozen encoder computes.
    """

    model: DualEncoder
    encoder: ReducedEncoder
    train: ImageSet
    val: ImageSet
    cache: Path


class Distances(NamedTuple):
    """Mean errors at one budget: 1 - cosine to the unpruned embedding, and that of the hidden states (0 without taps)."""

    embedding: float
    hidden: float


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """The outcome.

    Attributes:
        recovery: with its scale; None where the encoder is better without.
        kept: what it is, likewise.
        losses: mean loss of each pass, relative to that without corrections.
        best_pass: from 1; 0 where the encoder is better without.
    """

    recovery: Recovery | None
    kept: RecoveryInfo | None
    losses: tuple[float, ...]
    best_pass: int


def recover(task: RecoverTask, config: RecoverConfig, state: Path | None = None, progress: Progress | None = None) -> Recovered:
    """Trains corrections of the blocks that see fewer tokens, and leaves the model as it was.

    A step draws a number of patches, and its loss is relative to that of the encoder without corrections at this number, so that each
    counts alike. The best of the passes, of which eight at most are judged, is that of the lowest mean relative error on the validation
    images, and of the scales for all corrections the one with the lowest among those that make no keep worse. Training is saved to the
    file `state` after each pass and goes on from it, with the same result as if it had not been stopped; one of another task or other
    settings is replaced.

    Validation images that are training images too do not judge, and images of one kind are warned of.

    Raises:
        DataError: there are fewer than `LEAST_IMAGES` training images, or every validation image is one of them; ImageError: one cannot
            be decoded.
        ModelError: the loss is NaN or infinite, in the step that it names; the state of the pass before stays.
        StorageError: the state or the cache cannot be written.
    """
    if len(task.train) < LEAST_IMAGES:
        raise DataError(f"recovery has {len(task.train)} training images, but needs at least {LEAST_IMAGES}; give more, labelled or not")
    progress = progress or SilentProgress()
    training = _Training(replace(task, val=_unlearned(task)), config, progress)
    values = dict(training.recovery.named_parameters())
    adam = torch.optim.AdamW(list(values.values()), config.lr, weight_decay=config.weight_decay)
    current = TrainingState(values, adam)
    store, name = TensorStore(state.parent if state else None, training.key()), state.name if state else ""
    current.resume(store, name)
    passes, steps = config.passes(len(task.train)), math.ceil(len(task.train) / config.batch)
    every = math.ceil(passes / _JUDGEMENTS)
    with stage(progress, "training recovery (passes)", passes):
        progress.advance(len(current.history))
        for number in range(len(current.history), passes):
            training.steps = 0
            rates = (config.lr_at((number + step / steps) / passes) for step in range(steps))
            loss = train_epoch(adam, training.loss, len(task.train), config, number, rates)
            if not math.isfinite(loss):
                where = f"step {training.steps} of pass {number + 1}"
                raise ModelError(f"the loss of recovery is {loss} in {where}; lower recover.lr, which is {config.lr}, and run it again")
            score = -training.judge() if (number + 1) % every == 0 or number + 1 == passes else None
            if score is not None and all(earlier is None or score > earlier for _, earlier in current.history):
                current.keep_best(number + 1)
            current.history.append((loss, score))
            current.save(store, name)
            progress.advance()
    current.set_values(current.best)
    return training.outcome(tuple(loss for loss, _ in current.history), current.best_epoch)


class _Training:
    """The corrections, what they learn from, and how good the encoder is with them; `steps` of a pass were taken."""

    steps = 0

    def __init__(self, task: RecoverTask, config: RecoverConfig, progress: Progress) -> None:
        self._encoder, self._config, self._images = task.encoder.requires_grad_(False).eval(), config, len(task.train)
        self._taps = taps_of(task.encoder.spec, hidden=config.hidden > 0.0, smaller=task.model.native is not task.model.tower)
        judged = task.val.subset(equally_spaced(len(task.val), config.judged))
        copies = Copies(len(task.train), config.copies, config.crop)
        self._train = teach(task.model, task.train, self._taps, copies, task.cache, progress)
        self._val = teach(task.model, judged, self._taps, Copies(len(judged), 0, 1.0), task.cache, progress)
        _warn_of_one_kind(self._train.embeddings[: len(task.train)], self._val.embeddings)
        self._weights = task.model.weights_sha256
        self._autocast = resolve_precision(config.precision, task.model.tower.device) == "bf16"
        generator = torch.Generator().manual_seed(config.seed)
        self.recovery = Recovery(task.encoder.tower, self._taps.first, config.rank, generator)
        self._shares = judged_shares(task.encoder.spec, config.keep_low)
        with stage(progress, "measuring without recovery (keeps)", len(self._shares)):
            # The first corrections are none.
            self._before = [self._errors(share, progress) for share in self._shares]

    def key(self) -> str:
        """Of all that the result depends on."""
        scorers = content_digest(getattr(self._encoder, "scorers", None))
        parts = [part.digest for data in (self._train, self._val) for part in (data.tokens, *data.states)]
        first = tensors_digest(self.recovery.tensors())
        return digest(SCHEMA, asdict(self._config), asdict(self._encoder.spec), self._weights, scorers, parts, first, self._autocast)

    def loss(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss of a step over the images `chosen` (batch,) int64, relative to that without corrections."""
        config, spec = self._config, self._encoder.spec
        self.steps += 1
        items = chosen + self._images * torch.randint(0, config.copies + 1, chosen.shape, generator=generator)
        drawn, anchor = torch.rand(2, generator=generator).tolist()
        low = least_share(spec, config.keep_low)
        share = 1.0 if anchor < _ANCHOR else low + (1.0 - low) * drawn
        with torch.autocast(self._encoder.tower.device.type, torch.bfloat16) if self._autocast else nullcontext():
            embedding, hidden = self._compared(self._train, items, share)
        before = self._reference(share)
        value = embedding.mean() / before.embedding
        return value + config.hidden * hidden.mean() / before.hidden if self._taps.blocks else value

    def judge(self) -> float:
        """Mean error of the validation images over the judged keeps, relative to that without corrections."""
        relative = self._relative([self._errors(share) for share in self._shares])
        return sum(relative) / len(relative)

    def outcome(self, losses: tuple[float, ...], best_pass: int) -> Recovered:
        """Chooses the scale; there is no recovery where none makes the mean better and no keep worse."""
        after, best, chosen = self._before, 1.0, 0.0
        for scale in SCALES:
            self.recovery.scale = scale
            found = [self._errors(share) for share in self._shares]
            relative = self._relative(found)
            if max(relative) <= 1.0 and (mean := sum(relative) / len(relative)) < best:
                best, chosen, after = mean, scale, found
        if not chosen:
            return Recovered(None, None, losses, 0)
        self.recovery.scale = chosen
        self.recovery.requires_grad_(False)
        keeps = tuple(Keep.ratio(share).resolve(self._encoder.spec.patches) for share in self._shares)
        cosines = (tuple(1.0 - error.embedding for error in errors) for errors in (self._before, after))
        kept = RecoveryInfo(self._config.rank, self.recovery.first, chosen, self._images, self._config.copies, keeps, *cosines)
        return Recovered(self.recovery, kept, losses, best_pass)

    def _relative(self, errors: Sequence[Distances]) -> list[float]:
        """The error of the embedding at each judged keep, relative to that without corrections."""
        before = [error.embedding for error in self._before]
        least = max(_TINY, _NEGLIGIBLE * max(before))
        return [max(error.embedding, least) / max(old, least) for error, old in zip(errors, before, strict=True)]

    def _reference(self, share: float) -> Distances:
        """What the errors at a share are relative to: those without corrections, on the line between the judged ones in the logarithm."""
        found = []
        for column in zip(*self._before, strict=True):
            # Where nearly every patch is kept the error is next to nothing, and relative to that such steps would decide alone.
            known = np.maximum(column, max(_TINY, _FLOOR * max(column)))
            found.append(math.exp(np.interp(share, self._shares, np.log(known))))
        return Distances(*found)

    def _errors(self, share: float, progress: Progress | None = None) -> Distances:
        """Mean errors of the validation images, in float32."""
        sums, count = [0.0, 0.0], len(self._val.embeddings)
        with torch.no_grad():
            for items in torch.split(torch.arange(count), _BATCH):
                for place, part in enumerate(self._compared(self._val, items, share)):
                    sums[place] += float(part.sum())
        if progress is not None:
            progress.advance()
        return Distances(sums[0] / count, sums[1] / count)

    def _compared(self, data: Taught, items: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Errors of some items at a share of the patches, (batch,) each: of the embedding, and of the hidden states."""
        encoder, chosen = self._encoder, items.tolist()
        counts = encoder.spec.counts(Keep.ratio(share)) if encoder.spec.method != NONE else ()
        tokens = data.tokens.batch(chosen).to(encoder.tower.device)
        found = self.recovery.running(encoder.tower, lambda: shortened(encoder, tokens, counts, self._taps))
        wanted = data.embeddings[items].to(tokens.device)
        embedding = 1.0 - (functional.normalize(found.embedding.float(), dim=-1) * wanted).sum(dim=-1)
        states = [state.batch(chosen).to(tokens.device) for state in data.states]
        return embedding, hidden_error(found, states, encoder.spec.prefix_tokens)


def _unlearned(task: RecoverTask) -> ImageSet:
    """The validation images that are no training images."""
    others = np.flatnonzero(~np.isin(fingerprints(task.val), fingerprints(task.train))).tolist()
    if not others:
        raise DataError(f"all {len(task.val)} validation images are training images too, so none can judge what is learned; give others")
    if len(others) < len(task.val):
        _log.warning("%d of %d validation images are training images too; the others judge", len(task.val) - len(others), len(task.val))
    return task.val.subset(others)


def _warn_of_one_kind(train: Tensor, val: Tensor) -> None:
    """Logs a warning where images vary little; all (images, E)."""
    for what, embeddings in (("training", train), ("validation", val)):
        if len(embeddings) >= LEAST_IMAGES and (found := directions(embeddings)) < ONE_KIND:
            _log.warning(
                "the %s images are of one kind: their embeddings vary in about %.0f directions, where a mixture of photographs has 27 and more; "
                "recovery and what validation says of it hold for such images, so add others if the encoder is to see others",
                *(what, found),
            )


def directions(embeddings: Tensor) -> float:
    """In how many directions embeddings (images, E) vary: the participation ratio of the eigenvalues of their covariance, 1 to E."""
    values = torch.linalg.svdvals((embeddings - embeddings.mean(dim=0)).double()).square()
    return float(values.sum().square() / values.square().sum().clamp_min(_TINY))


def hidden_error(found: Shortened, wanted: Sequence[Tensor], prefix: int) -> Tensor:
    """Mean squared difference of standardised tokens over class token, registers, kept patches and taps: (batch,).

    `wanted` are the unpruned tokens (batch, prefix + N, D) behind each tapped block. Standardised as a LayerNorm does, for some channels
    are a hundred times larger than the rest.
    """
    if found.places is None or not found.states:
        return found.embedding.new_zeros(len(found.embedding))
    places = functional.pad(found.places + prefix, (prefix, 0))
    places[:, :prefix] = torch.arange(prefix, device=places.device)
    errors = []
    for state, whole in zip(found.states, wanted, strict=True):
        target = whole.gather(1, places.unsqueeze(-1).expand(-1, -1, whole.shape[2]))
        ours, theirs = (functional.layer_norm(part.float(), part.shape[-1:]) for part in (state, target))
        errors.append((ours - theirs).square().mean(dim=(1, 2)))
    return torch.stack(errors).mean(dim=0)


def least_share(spec: PruneSpec, keep_low: float) -> float:
    """The lowest share of patches of a range that the reducer can reach."""
    return max(keep_low, spec.least_keep / spec.patches)


def judged_shares(spec: PruneSpec, keep_low: float) -> tuple[float, ...]:
    """The shares of patches at which validation images judge: four from the lowest on; one where no patch drops."""
    if spec.method == NONE:
        return (1.0,)
    low = least_share(spec, keep_low)
    return tuple(np.linspace(low, max(low, _HIGHEST), _JUDGED_KEEPS).tolist())
