"""Train recovery: corrections of the blocks that see shortened sequences, taught by the unpruned embeddings, without labels."""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prtool.errors import DataError, ModelError
from prtool.manifest import RecoveryInfo
from prtool.progress import Progress, SilentProgress, stage
from prtool.spec import Cost, PruneSpec
from prtool.store import digest
from prtool.trainer.data.copies import Copies
from prtool.trainer.data.images import ImageSet, equally_spaced
from prtool.trainer.data.seen import fingerprints
from prtool.trainer.loop import TrainingState, train_epoch
from prtool.trainer.models.dual_encoder import DualEncoder, content_digest
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.models.recovery import Recovery
from prtool.trainer.models.reduced import ReducedEncoder
from prtool.trainer.models.tower import resolve_precision
from prtool.trainer.recovery.data import Taught, teach
from prtool.trainer.settings import RecoverConfig
from prtool.trainer.store import TensorStore, tensors_digest

SCHEMA = 3
LEAST_IMAGES = 32
"""Training images that recovery needs at least."""
SCALES = (0.25, 0.5, 0.75, 1.0)
"""Of which the corrections get the best, if the encoder is better with them."""
ONE_KIND = 20.0
"""Images whose embeddings vary in fewer directions are of one kind: pets, textures or satellite images alone have 8 to 18, a mixture 27 to 37."""
_JUDGED_KEEPS = 4
_JUDGEMENTS = 8
"""Of few images there are many passes; judging each would take longer than they do."""
_BATCH = 16
_TINY = 1e-9
_RESOLVED = 1e-5
"""An error below this teaches nothing: the tokens are stored in float16, and the root has no slope at 0."""
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

    A step draws a number of patches within `keep_range`. Its loss is the mean over images of the root of the error, which is the distance
    of the embeddings, so that a few hard images do not decide; relative to the error without corrections at this number, so that each
    number counts alike. The best of the passes, of which eight at most are judged, is that of the lowest mean relative error on the
    validation images, and of the scales for all corrections the one with the lowest among those that make no keep worse. Training is saved
    to the file `state` after each pass and goes on from it, with the same result as if it had not been stopped; one of another task or
    other settings is replaced.

    Validation images that are training images too do not judge, and images of one kind are warned of.

    Raises:
        DataError: there are fewer than `LEAST_IMAGES` training images, or every validation image is one of them; ImageError: one cannot
            be decoded.
        ModelError: the loss is NaN or infinite, in the step that it names; the state of the pass before stays.
        StorageError: the state or the cache cannot be written.
    """
    check_enough(task.train)
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


def check_enough(train: ImageSet) -> None:
    """Raises DataError where there are fewer than `LEAST_IMAGES` training images."""
    if len(train) < LEAST_IMAGES:
        raise DataError(
            f"recovery has {len(train)} training images, but needs at least {LEAST_IMAGES}; give more, labelled or not, or leave it out: "
            "--phase predictor, or none where there is no predictor"
        )


class _Training:
    """The corrections, what they learn from, and how good the encoder is with them; `steps` of a pass were taken."""

    steps = 0

    def __init__(self, task: RecoverTask, config: RecoverConfig, progress: Progress) -> None:
        self._encoder, self._config, self._images = task.encoder.requires_grad_(False).eval(), config, len(task.train)
        spec, smaller = task.encoder.spec, task.model.native is not task.model.tower
        # The first block that sees fewer tokens, which with a smaller image is block 1.
        self._first = 1 if smaller or not spec.locations else spec.locations[0]
        judged = task.val.subset(equally_spaced(len(task.val), config.judged))
        copies = Copies(len(task.train), config.copies, config.crop)
        self._train = teach(task.model, task.train, self._first, copies, task.cache, progress)
        self._val = teach(task.model, judged, self._first, Copies(len(judged), 0, 1.0), task.cache, progress)
        _warn_of_one_kind(self._train.embeddings[: len(task.train)], self._val.embeddings)
        self._weights = task.model.weights_sha256
        self._autocast = resolve_precision(config.precision, task.model.tower.device) == "bf16"
        generator = torch.Generator().manual_seed(config.seed)
        self.recovery = Recovery(task.encoder.tower, self._first, config.rank, generator)
        self._range = keep_range(spec, task.encoder.tower.cost(), config.macs_low, config.macs_high)
        self._keeps = tuple(dict.fromkeys(np.linspace(*self._range, _JUDGED_KEEPS).round().astype(int).tolist()))
        with stage(progress, "measuring without recovery (keeps)", len(self._keeps)):
            # The first corrections are none.
            self._before = [self._error(k, progress) for k in self._keeps]

    def key(self) -> str:
        """Of all that the result depends on."""
        scorers = content_digest(getattr(self._encoder, "scorers", None))
        parts = [data.tokens.digest for data in (self._train, self._val)]
        first = tensors_digest(self.recovery.tensors())
        return digest(SCHEMA, asdict(self._config), asdict(self._encoder.spec), self._weights, scorers, parts, first, self._autocast)

    def loss(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss of a step over the images `chosen` (batch,) int64, relative to that without corrections."""
        config, (low, high) = self._config, self._range
        self.steps += 1
        items = chosen + self._images * torch.randint(0, config.copies + 1, chosen.shape, generator=generator)
        k = int(torch.randint(low, high + 1, (), generator=generator))
        with torch.autocast(self._encoder.tower.device.type, torch.bfloat16) if self._autocast else nullcontext():
            errors = self._errors(self._train, items, k)
        return (errors.clamp_min(_RESOLVED) / self._reference(k)).sqrt().mean()

    def judge(self) -> float:
        """Mean error of the validation images over the judged keeps, relative to that without corrections."""
        relative = self._relative([self._error(k) for k in self._keeps])
        return sum(relative) / len(relative)

    def outcome(self, losses: tuple[float, ...], best_pass: int) -> Recovered:
        """Chooses the scale; there is no recovery where none makes the mean better and no keep worse."""
        after, best, chosen = self._before, 1.0, 0.0
        for scale in SCALES:
            self.recovery.scale = scale
            found = [self._error(k) for k in self._keeps]
            relative = self._relative(found)
            if max(relative) <= 1.0 and (mean := sum(relative) / len(relative)) < best:
                best, chosen, after = mean, scale, found
        if not chosen:
            return Recovered(None, None, losses, 0)
        self.recovery.scale = chosen
        self.recovery.requires_grad_(False)
        cosines = (tuple(1.0 - error for error in errors) for errors in (self._before, after))
        kept = RecoveryInfo(self._config.rank, self._first, chosen, self._images, self._config.copies, self._keeps, *cosines)
        return Recovered(self.recovery, kept, losses, best_pass)

    def _relative(self, errors: Sequence[float]) -> list[float]:
        """The error at each judged keep, relative to that without corrections."""
        least = max(_TINY, _NEGLIGIBLE * max(self._before))
        return [max(error, least) / max(old, least) for error, old in zip(errors, self._before, strict=True)]

    def _reference(self, k: int) -> float:
        """What errors at k patches are relative to: those without corrections, on the line between the judged ones in the logarithm."""
        # Where nearly every patch is kept the error is next to nothing, and relative to that such steps would decide alone.
        known = np.maximum(self._before, max(_TINY, _FLOOR * max(self._before)))
        return math.exp(np.interp(k, self._keeps, np.log(known)))

    def _error(self, k: int, progress: Progress | None = None) -> float:
        """Mean error of the validation images, in float32."""
        count = len(self._val.embeddings)
        with torch.no_grad():
            total = sum(float(self._errors(self._val, items, k).sum()) for items in torch.split(torch.arange(count), _BATCH))
        if progress is not None:
            progress.advance()
        return total / count

    def _errors(self, data: Taught, items: Tensor, k: int) -> Tensor:
        """1 - cosine to the unpruned embeddings of some items with k patches kept: (batch,)."""
        encoder, tower = self._encoder, self._encoder.tower
        tokens, counts = data.tokens.batch(items.tolist()).to(tower.device), encoder.spec.counts(k)
        found = self.recovery.running(tower, lambda: self._shortened(tokens, counts))
        return 1.0 - (functional.normalize(found.float(), dim=-1) * data.embeddings[items].to(tokens.device)).sum(dim=-1)

    def _shortened(self, tokens: Tensor, counts: Sequence[int]) -> Tensor:
        if not isinstance(self._encoder, PrunedEncoder):
            return self._encoder.encode_from(tokens, self._first, counts)
        with torch.autocast(tokens.device.type, enabled=False):
            # In float32, as deployed: in bfloat16 the ranking is another one.
            entered = self._encoder.run_pre_from(tokens, self._first)
        return self._encoder.finish(*entered, counts)


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


def keep_range(spec: PruneSpec, cost: Cost, low: float, high: float) -> tuple[int, int]:
    """The least and the greatest number of patches whose cost lies between two shares of that of all patches at this image size; the
    nearest ones where none does."""
    if not spec.locations:
        return spec.patches, spec.patches
    keeps = range(spec.least_keep, spec.patches + 1)
    shares = np.array([cost.pruned_gmacs(spec, spec.counts(k)) for k in keeps]) / cost.pruned_gmacs(spec, spec.counts(spec.patches))
    least = min(int(np.searchsorted(shares, low)), len(keeps) - 1)
    return keeps[least], keeps[max(least, int(np.searchsorted(shares, high, side="right")) - 1)]
