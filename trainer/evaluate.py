"""Evaluation: zero-shot accuracy against keep rate, for several ways of choosing patches on the same tokens."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from prtool.errors import ConfigError, ShapeError
from prtool.progress import Progress, SilentProgress, stage
from prtool.spec import Keep, PruneSpec
from prtool.trainer.baselines.base import Entered, Method, RankingMethod
from prtool.trainer.baselines.golden import Golden
from prtool.trainer.baselines.patch_ranking import PatchRanking
from prtool.trainer.baselines.registry import GOLDEN, METHODS, Ingredients
from prtool.trainer.checkpoint import Checkpoint, MatchRow
from prtool.trainer.config import TrainConfig
from prtool.trainer.data import SPLITS, ImageSet, load_split, pixel_batches
from prtool.trainer.eval_report import UNPRUNED, EvalReport, EvalRow
from prtool.trainer.golden import GoldenConfig
from prtool.trainer.golden_store import rank_images
from prtool.trainer.matching import constant_ranking, matching_rate, random_rate
from prtool.trainer.model import DualEncoder
from prtool.trainer.predictor import PatchScorer
from prtool.trainer.spread import SpreadScorer

__all__ = ["EvalConfig", "EvalReport", "EvalRow", "Pruner", "evaluate", "evaluate_run", "matching_table"]

_ONE_POINT = 1.0


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """What is compared, and on which images.

    Attributes:
        split: part of the data: train, val or test.
        keeps: keep ratios or counts.
        methods: names of `METHODS`, and "golden" (the oracle; it ranks every evaluated image first, seconds each).
        images: at most this many, drawn by the seed; 0 takes all.
        batch: images encoded at once; results do not depend on it, and a CPU is fastest with small ones (16 by 20 % over 32).
        seed: of random choices and of the subset of images.
        templates: prompts with one {} each; empty takes the run's.
    """

    split: str = "test"
    keeps: tuple[Keep, ...] = tuple(Keep.ratio(value) for value in (1.0, 0.8, 0.7, 0.6, 0.5))
    methods: tuple[str, ...] = ("patch-ranking", "cls-attention", "random")
    images: int = 0
    batch: int = 16
    seed: int = 0
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = (*METHODS, GOLDEN)
        for name in self.methods:
            if name not in known:
                raise ConfigError(f"method = {name!r}, but it must be one of {', '.join(known)}")
        if len(set(self.methods)) != len(self.methods) or not self.methods:
            raise ConfigError(f"methods = {list(self.methods)}, but give at least one, each once; known: {', '.join(known)}")
        if not self.keeps:
            raise ConfigError("keeps is empty, but give at least one keep ratio (0.6) or count (118)")
        if self.split not in SPLITS:
            raise ConfigError(f"split = {self.split!r}, but it must be one of {', '.join(SPLITS)}")
        if self.batch < 1 or self.images < 0:
            raise ConfigError(f"batch = {self.batch} and images = {self.images}, but they must be at least 1 and at least 0 (all)")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed = {self.seed}, but it must be 0 to {2**32 - 1}")


@dataclass(frozen=True, slots=True)
class Pruner:
    """What decides at the location.

    Attributes:
        spec: where tokens drop.
        scorer: the predictor, on the model's device; None where only other methods are compared.
        trained: False for a freshly initialised predictor, whose choice of patches means nothing.
        golden: how the oracle searches; its location must be the spec's.
        cache: folder of golden rankings, or None to keep none.
    """

    spec: PruneSpec
    scorer: PatchScorer | SpreadScorer | None = None
    trained: bool = True
    golden: GoldenConfig = field(default_factory=GoldenConfig)
    cache: Path | None = None

    @classmethod
    def of_run(cls, checkpoint: Checkpoint, run: Path, split: str, device: torch.device) -> "Pruner":
        """The predictor and golden search of a run; rankings of images lie in the run's folder, beside those it trained on."""
        settings = replace(TrainConfig.from_json(checkpoint.config).golden, location=checkpoint.prune.locations[0])
        scorer = checkpoint.chooser().to(device)
        return cls(checkpoint.prune, scorer, checkpoint.scorer_trained, settings, run / "golden" / split)


def evaluate_run(run: Path, data: Path | None, config: EvalConfig, progress: Progress | None = None) -> EvalReport:
    """Evaluates a run's predictor beside other methods.

    Args:
        run: folder of a checkpoint.
        data: data folder; None takes the run's.
        config: what is compared. The model runs on a CUDA device where there is one, unless the run was set to "cpu".
        progress: hears about images.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        ConfigError: neither the run nor the call names data, or a method does not suit the model.
        DataError: the data cannot be read; ImageError names an image that cannot be decoded.
    """
    checkpoint = Checkpoint.load(run)
    if data is None and not checkpoint.data.root:
        raise ConfigError(f"{run} was made without data, so there is nothing to evaluate on; give --data DIR")
    images = load_split(data or checkpoint.data.root, config.split)
    wanted = TrainConfig.from_json(checkpoint.config).device
    device = torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
    model = checkpoint.load_model(str(device))
    classes = model.class_embeddings(images.classnames, config.templates or checkpoint.templates)
    pruner = Pruner.of_run(checkpoint, run, config.split, device)
    report = evaluate(model, pruner, images, classes, config, progress)
    return replace(report, notes=(*report.notes, *_run_notes(checkpoint, images, config)))


@torch.inference_mode()
def evaluate(
    model: DualEncoder, pruner: Pruner, images: ImageSet, classes: Tensor, config: EvalConfig, progress: Progress | None = None
) -> EvalReport:
    """Accuracy, cost and closeness to the unpruned embedding for each method and keep rate.

    Every image enters the location once, in float32; all methods and keep rates start from those tokens.

    Args:
        model: the frozen encoder.
        pruner: what decides at the location.
        images: one split; `config.images` may take a part of it.
        classes: (classes, E) float32, L2-normalised class embeddings in label order.
        config: what is compared.
        progress: hears about images.

    Raises:
        ConfigError: a method does not suit the model, or two keeps are the same number of patches.
        ImageError: an image cannot be decoded.
    """
    progress = progress or SilentProgress()
    if classes.shape != (len(images.classnames), model.tower.embed_dim):
        wanted = (len(images.classnames), model.tower.embed_dim)
        raise ShapeError(f"class embeddings have shape {tuple(classes.shape)}, but {wanted} is needed: one row for each class name")
    counts = _counts(config.keeps, pruner.spec.patches)
    ingredients = Ingredients(model.tower, pruner.scorer, config.seed)
    # Every other method is made before the images are ranked: what cannot run should say so at once.
    methods: dict[str, Method] = {name: METHODS[name](ingredients) for name in config.methods if name != GOLDEN}
    chosen = images.take(config.images, config.seed)
    golden = _rank(model, pruner, chosen, classes, progress) if GOLDEN in config.methods else None
    if golden is not None:
        methods[GOLDEN] = Golden(golden)
    task = _Task(model, pruner.spec, chosen, classes, [methods[name] for name in config.methods], counts)
    found = _Found()
    for entered in _entered(model, pruner.spec, chosen, config.batch, progress):
        _measure(task, entered, found)
    rows = _rows(task, config.keeps, found, golden)
    return EvalReport(
        rows=rows,
        model=model.name,
        pretrained=model.pretrained,
        weights_sha256=model.weights_sha256,
        data=str(images.root),
        split=config.split,
        seed=config.seed,
        location=pruner.spec.locations[0],
        patches=pruner.spec.patches,
        predictor_trained=None if pruner.scorer is None else pruner.trained,
        notes=_notes(model, pruner, config, rows[0]),
    )


@torch.inference_mode()
def matching_table(
    model: DualEncoder, pruner: Pruner, images: ImageSet, training: Tensor, counts: Sequence[int], progress: Progress | None = None
) -> tuple[MatchRow, ...]:
    """Matching rates @m of the predictor on `images`, beside a random and a constant (mean-rank) order's.

    Args:
        model: the frozen encoder.
        pruner: predictor and golden search (by score "feature", which needs no classes).
        images: ranked here, or read from the pruner's cache.
        training: (images, N) golden rankings of the training images, for the constant order.
        counts: the m, each 1 to N.
        progress: hears about images.

    Raises:
        ConfigError: there is no predictor.
    """
    if pruner.scorer is None:
        raise ConfigError("the matching rate is a predictor's, but there is none; train one")
    method = PatchRanking(pruner.scorer)
    progress = progress or SilentProgress()
    golden = _rank(model, pruner, images, None, progress)
    entered = _entered(model, pruner.spec, images, EvalConfig().batch, progress)
    order = torch.cat([method.order(batch).cpu() for batch in entered])
    constant = constant_ranking(training)
    patches = pruner.spec.patches
    return tuple(MatchRow(m, matching_rate(order, golden, m), random_rate(patches, m), matching_rate(constant, golden, m)) for m in counts)


@dataclass(frozen=True, slots=True)
class _Task:
    """What one pass over the images works on; `counts` are the numbers of patches kept."""

    model: DualEncoder
    spec: PruneSpec
    images: ImageSet
    classes: Tensor
    methods: Sequence[Method]
    counts: Sequence[int]


@dataclass(slots=True)
class _Tally:
    """Sums over images for one method and k."""

    correct: int = 0
    cosine: float = 0.0

    def add(self, embedding: Tensor, unpruned: Tensor, labels: Tensor, logits: Tensor) -> None:
        self.correct += int((logits.argmax(dim=1) == labels).sum())
        self.cosine += float((embedding * unpruned).sum(dim=1).double().sum())


@dataclass(frozen=True, slots=True)
class _Found:
    """Tallies by method name and k, the unpruned encoder's as (UNPRUNED, N), and the orders of methods that rank."""

    tallies: dict[tuple[str, int], _Tally] = field(default_factory=dict)
    orders: dict[str, list[Tensor]] = field(default_factory=dict)

    def order(self, method: Method) -> Tensor:
        """(images, N) int16, best first."""
        return torch.cat(self.orders[method.name])


def _entered(model: DualEncoder, spec: PruneSpec, images: ImageSet, batch: int, progress: Progress) -> Iterator[Entered]:
    """Each batch of images at the location."""
    device = next(model.tower.parameters()).device
    with stage(progress, "evaluating (images)", len(images)):
        for indices, pixels in pixel_batches(images, model.preprocess, range(len(images)), batch):
            tokens = model.tower.enter(pixels.to(device), spec.locations[0])
            yield Entered(tokens, tuple(indices), model.tower, spec)
            progress.advance(len(indices))


def _measure(task: _Task, entered: Entered, found: _Found) -> None:
    labels = torch.tensor([task.images.labels[index] for index in entered.indices], device=entered.tokens.device)
    unpruned = entered.leave(entered.tokens)

    def add(name: str, k: int, embedding: Tensor) -> None:
        tally = found.tallies.setdefault((name, k), _Tally())
        tally.add(embedding, unpruned, labels, task.model.logits(embedding, task.classes))

    add(UNPRUNED, task.spec.patches, unpruned)
    for method in task.methods:
        if not isinstance(method, RankingMethod):
            for k in task.counts:
                add(method.name, k, method.encode(entered, k))
            continue
        order = method.order(entered)
        found.orders.setdefault(method.name, []).append(order.to("cpu", torch.int16))
        for k in task.counts:
            # Keeping every patch is the unpruned encoder, whatever the order: attention does not see it.
            add(method.name, k, unpruned if k == task.spec.patches else entered.keep_patches(order[:, :k]))


def _rows(task: _Task, keeps: Sequence[Keep], found: _Found, golden: Tensor | None) -> tuple[EvalRow, ...]:
    spec, cost, images = task.spec, task.model.tower.cost(), len(task.images)
    tally = found.tallies[UNPRUNED, spec.patches]
    rows = [EvalRow(UNPRUNED, 1.0, 100 * tally.correct / images, images, cost.full_gmacs(spec), None, tally.cosine / images)]
    for method in task.methods:
        for keep, k in zip(keeps, task.counts, strict=True):
            tally = found.tallies[method.name, k]
            matching = None if golden is None or method.name not in found.orders else matching_rate(found.order(method), golden, k)
            share = k / spec.patches if keep.is_count else keep.value
            accuracy = 100 * tally.correct / images
            rows.append(EvalRow(method.name, share, accuracy, images, method.gmacs(cost, spec, k), matching, tally.cosine / images))
    return tuple(rows)


def _rank(model: DualEncoder, pruner: Pruner, images: ImageSet, classes: Tensor | None, progress: Progress) -> Tensor:
    """The golden ranking (images, N) int64 on the CPU."""
    if pruner.golden.location != pruner.spec.locations[0]:
        raise ConfigError(f"golden.location = {pruner.golden.location}, but tokens drop at {pruner.spec.locations[0]}; give both the same")
    return rank_images(model, images, pruner.golden, pruner.cache, classes, progress).ranking.long()


def _counts(keeps: Sequence[Keep], patches: int) -> tuple[int, ...]:
    counts = tuple(keep.resolve(patches) for keep in keeps)
    if len(set(counts)) != len(counts):
        listed = ", ".join(f"{keep} = {k} patches" for keep, k in zip(keeps, counts, strict=True))
        raise ConfigError(f"two keeps are the same number of patches ({listed}); give each once")
    return counts


def _notes(model: DualEncoder, pruner: Pruner, config: EvalConfig, unpruned: EvalRow) -> tuple[str, ...]:
    notes: list[str] = []
    if "patch-ranking" in config.methods and not pruner.trained:
        notes.append("the predictor is freshly initialised and untrained: the patches that patch-ranking keeps, and its accuracy, mean nothing")
    if not model.pretrained and ":" not in model.name:
        notes.append(f"{model.name} has random weights: every accuracy here is chance")
    if GOLDEN in config.methods:
        how, steps = pruner.golden, "one step" if pruner.golden.step == 0 else f"{pruner.golden.step} groups a step"
        notes.append(
            f"golden is an oracle: it tried each image without each patch (score {how.score}, groups of {how.group} x {how.group}, {steps}); "
            "that search is not part of its GMACs"
        )
    share = unpruned.accuracy / 100
    error = 100 * math.sqrt(share * (1 - share) / unpruned.images)
    if error >= _ONE_POINT:
        notes.append(f"{unpruned.images} images: an accuracy has a standard error of {error:.1f} points")
    return tuple(notes)


def _run_notes(checkpoint: Checkpoint, images: ImageSet, config: EvalConfig) -> list[str]:
    notes = []
    root = str(images.root.resolve())
    if root == checkpoint.data.root and config.split == "train" and checkpoint.scorer_trained:
        notes.append("the predictor was trained on these images; --split test shows what it does on new ones")
    if root != checkpoint.data.root and checkpoint.scorer_trained:
        notes.append(f"the predictor was trained on {checkpoint.data.root}, not on this data")
    return notes
