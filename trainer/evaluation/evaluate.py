"""Evaluation: zero-shot accuracy against keep rate, for several ways of spending fewer tokens on the same images."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from prtool.errors import ShapeError
from prtool.progress import Progress, SilentProgress, stage
from prtool.spec import Keep, PruneSpec
from prtool.text_safety import printable
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.images import ImageSet
from prtool.trainer.data.load import load_split, pixel_batches, templates_for
from prtool.trainer.data.seen import Seen
from prtool.trainer.evaluation.baselines.base import AdaptiveMethod, Counts, Entered, Method, RankingMethod
from prtool.trainer.evaluation.baselines.golden import Golden
from prtool.trainer.evaluation.baselines.registry import METHODS, Ingredients
from prtool.trainer.evaluation.config import EvalConfig
from prtool.trainer.evaluation.ledger import Ledger
from prtool.trainer.evaluation.report import UNPRUNED, EvalReport, EvalRow
from prtool.trainer.models.dual_encoder import DualEncoder, content_digest
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.objectives.golden import GoldenSearch
from prtool.trainer.objectives.golden_store import rank_images
from prtool.trainer.objectives.matching import matching_rate
from prtool.trainer.runs.checkpoint import Checkpoint, without_tokens
from prtool.trainer.runs.folder import data_of
from prtool.trainer.settings import GOLDEN, PATCH_RANKING_TOKENS, GoldenConfig
from prtool.version import __version__

__all__ = ["EvalConfig", "EvalReport", "EvalRow", "Pruner", "evaluate", "evaluate_run"]

CALIBRATION_IMAGES = 128
"""Images on which a method that spends differently on each one is fitted to its budget."""
_ONE_POINT = 1.0
_SEEN_SHOWN, _SEEN_PATHS = 3, 100


@dataclass(frozen=True, slots=True)
class Pruner:
    """What decides at the locations.

    Attributes:
        spec: where tokens drop, without learnable tokens.
        scorers: the predictors, one for each location, on the model's device; () where only other methods are compared.
        trained: False for a freshly initialised predictor, whose choice of patches means nothing.
        golden: how the oracle searches, at the spec's first location.
        cache: folder of golden rankings, or None to keep none.
        tuned: the encoder with learnable tokens, or None.
        tuned_classes: (classes, E) float32, L2-normalised class embeddings with the learned context, or None.
    """

    spec: PruneSpec
    scorers: tuple[nn.Module, ...] = ()
    trained: bool = True
    golden: GoldenConfig = field(default_factory=GoldenConfig)
    cache: Path | None = None
    tuned: PrunedEncoder | None = None
    tuned_classes: Tensor | None = None

    @classmethod
    def of_run(cls, checkpoint: Checkpoint, run: Path, split: str, device: torch.device) -> "Pruner":
        """The predictors and golden search of a run; rankings of images lie in the run's folder, next to those it trained on."""
        settings = TrainConfig.from_json(checkpoint.config).golden
        scorers = tuple(scorer.to(device).eval() for scorer in checkpoint.scorers())
        return cls(without_tokens(checkpoint.prune), scorers, checkpoint.scorer_trained, settings, run / "golden" / split)

    def with_tokens(self, checkpoint: Checkpoint, model: DualEncoder, classnames: Sequence[str]) -> "Pruner":
        """The same with the run's learnable tokens, where it has some."""
        tokens = checkpoint.tokens
        if not tokens.visual and not tokens.text:
            return self
        classes = checkpoint.class_embeddings(model, classnames) if tokens.text else None
        return replace(self, tuned=checkpoint.pruned_encoder(model), tuned_classes=classes)


def evaluate_run(run: Path, data: str | Path | None, config: EvalConfig, progress: Progress | None = None) -> EvalReport:
    """Evaluates a run's predictor and other methods.

    Args:
        run: folder of a checkpoint.
        data: data folder; None takes the run's.
        config: what is compared. The model runs on a CUDA device where there is one, unless the run was set to "cpu".
        progress: advanced by images.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        ConfigError: neither the run nor the call names data, or a method does not suit the model.
        DataError: the data cannot be read or has no labels; ImageError names an image that cannot be decoded.
    """
    checkpoint = Checkpoint.load(run)
    images = load_split(data_of(run, checkpoint, data), config.split)
    images.require_labels("accuracy")
    wanted = TrainConfig.from_json(checkpoint.config).device
    device = torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
    model = checkpoint.load_model(str(device))
    own = checkpoint.templates if data is None or tuple(images.classnames) == checkpoint.classnames else templates_for(data)
    classes = model.class_embeddings(images.classnames, config.templates or own)
    pruner = Pruner.of_run(checkpoint, run, config.split, device)
    if PATCH_RANKING_TOKENS in config.methods:
        pruner = pruner.with_tokens(checkpoint, model, images.classnames)
    config = replace(config, store=config.store or run / "eval" / config.split)
    report = evaluate(model, pruner, images, classes, config, progress)
    trained, validated = Seen.from_bytes(checkpoint.seen).find(chosen := images.take(config.images, config.drawn_by))
    paths = tuple(printable(chosen.paths[index], 300) for index in [*trained, *validated][:_SEEN_PATHS])
    notes = [*report.notes, *_run_notes(checkpoint, images), *_seen_note(len(trained), len(validated), len(chosen), paths)]
    return replace(report, notes=tuple(notes), seen_images=len(trained) + len(validated), seen_paths=paths)


@torch.inference_mode()
def evaluate(
    model: DualEncoder, pruner: Pruner, images: ImageSet, classes: Tensor, config: EvalConfig, progress: Progress | None = None
) -> EvalReport:
    """Accuracy, cost and closeness to the unpruned embedding for each method and keep rate.

    Every image is embedded and runs unpruned once, in float32; all methods and keep rates start from its tokens. Where
    `config.store` is a folder, an evaluation that was interrupted resumes where it stopped.

    Args:
        model: the frozen encoder.
        pruner: what decides at the location.
        images: one split; `config.images` may take a part of it.
        classes: (classes, E) float32, L2-normalised class embeddings in label order.
        config: what is compared.
        progress: advanced by images.

    Raises:
        ConfigError: a method does not suit the model, or two keeps are the same number of patches.
        ImageError: an image cannot be decoded.
    """
    progress = progress or SilentProgress()
    if classes.shape != (len(images.classnames), model.tower.embed_dim):
        wanted = (len(images.classnames), model.tower.embed_dim)
        raise ShapeError(f"class embeddings have shape {tuple(classes.shape)}, but {wanted} is needed: one row for each class name")
    counts = pruner.spec.distinct_counts(config.keeps)
    ingredients = Ingredients(model.tower, pruner.scorers, config.seed, pruner.tuned, pruner.tuned_classes)
    # Every other method is made before the images are ranked: what cannot run should say so at once.
    methods = {name: METHODS[name](ingredients) for name in config.methods if name != GOLDEN}
    chosen = images.take(config.images, config.drawn_by)
    golden = _rank(model, pruner, chosen, classes, progress) if GOLDEN in config.methods else None
    if golden is not None:
        methods[GOLDEN] = Golden(golden)
    task = _Task(model, pruner.spec, chosen, classes, [methods[name] for name in config.methods], counts, golden)
    ledger = Ledger(len(chosen), config.store, _identity(task, pruner, config))
    known = Ledger(len(chosen), config.unpruned, _frozen_identity(task), name=UNPRUNED)
    _fill(task, ledger, known, config.batch, progress)
    known.save()
    rows = _rows(task, config.keeps, ledger)
    ledger.remove()
    return EvalReport(
        rows=rows,
        model=model.name,
        pretrained=model.pretrained,
        weights_sha256=model.weights_sha256,
        data=images.origin or str(images.root),
        split=config.split,
        seed=config.seed,
        locations=pruner.spec.locations,
        patches=pruner.spec.patches,
        predictor_trained=pruner.trained if pruner.scorers else None,
        notes=_notes(model, pruner, config, rows[0]),
    )


@dataclass(frozen=True, slots=True)
class _Task:
    """What one pass over the images works on; `counts` are the patches kept at each location, for each keep."""

    model: DualEncoder
    spec: PruneSpec
    images: ImageSet
    classes: Tensor
    methods: Sequence[Method]
    counts: Sequence[Counts]
    golden: Tensor | None


def _identity(task: _Task, pruner: Pruner, config: EvalConfig) -> dict[str, object]:
    """Everything that a value of the ledger depends on."""
    made_of = {"classes": task.classes, "golden": task.golden, "tuned classes": pruner.tuned_classes, "tuned": pruner.tuned}
    return {
        **_frozen_identity(task),
        "logits": [task.model.logit_scale, task.model.logit_bias],
        "spec": asdict(task.spec),
        "made of": {name: content_digest(part) for name, part in made_of.items()},
        "scorers": [content_digest(scorer) for scorer in pruner.scorers],
        "asked": [config.methods, task.counts, config.seed],
    }


def _frozen_identity(task: _Task) -> dict[str, object]:
    """Everything that an unpruned embedding depends on."""
    model = task.model
    return {
        "version": __version__,
        "model": [model.name, model.weights_sha256, asdict(model.preprocess)],
        "images": task.images.digest(),
    }


def _entered(model: DualEncoder, spec: PruneSpec, images: ImageSet, indices: Sequence[int], batch: int) -> Iterator[Entered]:
    """Each batch of images at the first location."""
    device = model.tower.device
    for chosen, pixels in pixel_batches(images, model.preprocess, indices, batch):
        yield Entered.of(model.tower, pixels.to(device), chosen, spec)


def _fill(task: _Task, ledger: Ledger, known: Ledger, batch: int, progress: Progress) -> None:
    """Evaluates the images that the ledger misses; `known` has unpruned embeddings, and takes those that it lacks."""
    missing = ledger.missing()
    adaptive = [method for method in task.methods if isinstance(method, AdaptiveMethod)]
    if adaptive and missing:
        sample = _sample(task, batch)
        with stage(progress, "calibrating (methods)", len(adaptive)):
            for method in adaptive:
                method.calibrate(sample, task.counts)
                progress.advance()
    with stage(progress, "evaluating (images)", len(task.images)):
        progress.advance(len(task.images) - len(missing))
        for entered in _entered(task.model, task.spec, task.images, missing, batch):
            frozen = known.rows(UNPRUNED, entered.indices)
            if frozen is None:
                known.put(UNPRUNED, entered.indices, entered.unpruned)
                known.close(entered.indices)
            else:
                entered.know_unpruned(frozen)
            _measure(task, entered, ledger)
            ledger.close(entered.indices)
            progress.advance(len(entered.indices))


def _sample(task: _Task, batch: int) -> Entered:
    """Images at equal distances in the set, which may be sorted by class."""
    count = min(CALIBRATION_IMAGES, len(task.images))
    chosen = [place * len(task.images) // count for place in range(count)]
    parts = list(_entered(task.model, task.spec, task.images, chosen, batch))
    embedded, tokens = torch.cat([part.embedded for part in parts]), torch.cat([part.tokens for part in parts])
    return Entered(embedded, tokens, tuple(chosen), task.model.tower, task.spec)


def _cell(method: str, counts: Counts, what: str) -> str:
    return f"{method}@{'-'.join(map(str, counts))}/{what}"


def _measure(task: _Task, entered: Entered, ledger: Ledger) -> None:
    labels = torch.tensor([task.images.labels[index] for index in entered.indices], device=entered.tokens.device)

    def put(name: str, counts: Counts, embedding: Tensor, classes: Tensor) -> None:
        right = task.model.logits(embedding, classes).argmax(dim=1) == labels
        ledger.put(_cell(name, counts, "right"), entered.indices, right)
        ledger.put(_cell(name, counts, "cosine"), entered.indices, (embedding * entered.unpruned).sum(dim=1))

    put(UNPRUNED, (), entered.unpruned, task.classes)
    for method in task.methods:
        for counts in task.counts:
            put(method.name, counts, method.encode(entered, counts), task.classes if method.classes is None else method.classes)
            if isinstance(method, AdaptiveMethod):
                ledger.put(_cell(method.name, counts, "gmacs"), entered.indices, method.spent(entered, counts))
        if task.golden is not None and isinstance(method, RankingMethod):
            ledger.put(f"{method.name}/order", entered.indices, method.order(entered).to(torch.int16))


def _rows(task: _Task, keeps: Sequence[Keep], ledger: Ledger) -> tuple[EvalRow, ...]:
    cost, images = task.model.tower.cost(), len(task.images)
    before = ledger.column(_cell(UNPRUNED, (), "right"))

    def row(method: str, keep: float, counts: Counts, gmacs: float, matching: float | None) -> EvalRow:
        right, cosine = ledger.column(_cell(method, counts, "right")), float(ledger.column(_cell(method, counts, "cosine")).double().mean())
        accuracy, lost, won = 100 * int(right.sum()) / images, int((before & ~right).sum()), int((right & ~before).sum())
        return EvalRow(method, keep, accuracy, images, gmacs, matching, cosine, lost, won)

    rows = [row(UNPRUNED, 1.0, (), cost.full_gmacs(task.spec), None)]
    for method in task.methods:
        for keep, counts in zip(keeps, task.counts, strict=True):
            matching = None
            if task.golden is not None and isinstance(method, RankingMethod):
                matching = matching_rate(ledger.column(f"{method.name}/order"), task.golden, counts[0])
            adaptive = isinstance(method, AdaptiveMethod)
            gmacs = float(ledger.column(_cell(method.name, counts, "gmacs")).mean()) if adaptive else method.gmacs(cost, task.spec, counts)
            share = counts[-1] / task.spec.patches if keep.is_count else keep.value
            rows.append(row(method.name, share, counts, gmacs, matching))
    return tuple(rows)


def _rank(model: DualEncoder, pruner: Pruner, images: ImageSet, classes: Tensor, progress: Progress) -> Tensor:
    """The golden ranking (images, N) int64 on the CPU."""
    return rank_images(GoldenSearch(model, pruner.spec.locations[0], pruner.golden, classes), images, pruner.cache, progress).ranking.long()


def _notes(model: DualEncoder, pruner: Pruner, config: EvalConfig, unpruned: EvalRow) -> tuple[str, ...]:
    notes: list[str] = []
    if {"patch-ranking", PATCH_RANKING_TOKENS} & set(config.methods) and not pruner.trained:
        notes.append("the predictor is freshly initialised and untrained: the patches that patch-ranking keeps, and its accuracy, mean nothing")
    if not model.pretrained and ":" not in model.name:
        notes.append(f"{model.name} has random weights: every accuracy here is chance")
    if GOLDEN in config.methods:
        how, steps = pruner.golden, "one step" if pruner.golden.step == 0 else f"{pruner.golden.step} groups a step"
        notes.append(
            f"golden is an oracle: it tried each image without each patch (score {how.score}, groups of {how.group} x {how.group}, {steps}); "
            "that search is not part of its GMACs"
        )
    if "avit" in config.methods:
        count = min(CALIBRATION_IMAGES, unpruned.images)
        notes.append(
            f"avit keeps another number of patches of each image; its threshold is fitted to the budget on {count} of these images, without labels"
        )
    if PATCH_RANKING_TOKENS in config.methods:
        notes.append(
            f"{PATCH_RANKING_TOKENS} keeps its learnable tokens on top of the patches; its drop is relative to the unpruned encoder without them"
        )
    share = unpruned.accuracy / 100
    error = 100 * math.sqrt(share * (1 - share) / unpruned.images)
    if error >= _ONE_POINT:
        notes.append(f"{unpruned.images} images: an accuracy has a standard error of {error:.1f} points")
    return tuple(notes)


def _run_notes(checkpoint: Checkpoint, images: ImageSet) -> list[str]:
    notes = [images.note] if images.note else []
    root = images.origin or str(images.root.resolve())
    if root != checkpoint.data.root and checkpoint.scorer_trained:
        notes.append(f"the predictor was trained on {checkpoint.data.root}, not on this data")
    return notes


def _seen_note(trained: int, validated: int, images: int, paths: Sequence[str]) -> list[str]:
    """How many of the evaluated images the run knows, or nothing."""
    if not trained + validated:
        return []
    first = ", ".join(paths[:_SEEN_SHOWN])
    return [
        f"{trained + validated} of {images} evaluated images were seen by the run, {trained} in training and {validated} in validation, and flatter "
        f"its figures: {first}{', ...' if trained + validated > _SEEN_SHOWN else ''}"
    ]
