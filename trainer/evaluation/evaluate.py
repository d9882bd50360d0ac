"""Evaluation: what several ways of spending fewer MACs keep of the unpruned encoder's accuracy, embeddings and retrieval."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from prtool.errors import ShapeError
from prtool.progress import Progress, SilentProgress, stage
from prtool.spec import Keep, PruneSpec
from prtool.text_safety import printable
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.images import NO_LABEL, ImageSet, equally_spaced
from prtool.trainer.data.load import load_split, pixel_batches, templates_for
from prtool.trainer.data.seen import Seen
from prtool.trainer.evaluation.baselines.base import CALIBRATION_IMAGES, AdaptiveMethod, Counts, Entered, Method, RankingMethod
from prtool.trainer.evaluation.baselines.golden import Golden
from prtool.trainer.evaluation.baselines.registry import Ingredients, make_methods
from prtool.trainer.evaluation.config import EvalConfig
from prtool.trainer.evaluation.ledger import Ledger
from prtool.trainer.evaluation.notes import notes, run_notes, seen_note
from prtool.trainer.evaluation.pruner import Pruner
from prtool.trainer.evaluation.report import NEIGHBOURS, UNPRUNED, ZERO_SHOT, EvalReport, EvalRow
from prtool.trainer.evaluation.retrieval import Neighbours, Texts
from prtool.trainer.models.dual_encoder import DualEncoder, content_digest
from prtool.trainer.objectives.golden import GoldenSearch
from prtool.trainer.objectives.golden_store import rank_images
from prtool.trainer.objectives.matching import matching_rate
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.folder import data_of
from prtool.trainer.settings import GOLDEN, PATCH_RANKING_TOKENS
from prtool.version import __version__

__all__ = ["EvalConfig", "EvalReport", "EvalRow", "Pruner", "evaluate", "evaluate_run"]

_SEEN_PATHS = 100


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
        DataError: the data cannot be read; ImageError names an image that cannot be decoded.
    """
    checkpoint = Checkpoint.load(run)
    images = load_split(data_of(run, checkpoint, data), config.split)
    wanted = TrainConfig.from_json(checkpoint.config).device
    device = torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
    model = checkpoint.load_model(str(device))
    own = checkpoint.templates if data is None or tuple(images.classnames) == checkpoint.classnames else templates_for(data)
    named = model.has_text and NO_LABEL not in images.labels
    classes = model.class_embeddings(images.classnames, config.templates or own) if named else None
    pruner = Pruner.of_run(checkpoint, run, config.split, device).with_recovery(checkpoint, model)
    if PATCH_RANKING_TOKENS in config.methods_of(pruner.spec):
        pruner = pruner.with_tokens(checkpoint, model, () if classes is None else images.classnames)
    config = replace(config, store=config.store or run / "eval" / config.split)
    report = evaluate(model, pruner, images, classes, config, progress)
    trained, validated = Seen.from_bytes(checkpoint.seen).find(chosen := images.take(config.images, config.drawn_by))
    paths = tuple(printable(chosen.paths[index], 300) for index in [*trained, *validated][:_SEEN_PATHS])
    notes = [*report.notes, *run_notes(checkpoint, images, report.rows), *seen_note(len(trained), len(validated), len(chosen), paths)]
    return replace(report, notes=tuple(notes), seen_images=len(trained) + len(validated), seen_paths=paths)


@torch.inference_mode()
def evaluate(
    model: DualEncoder, pruner: Pruner, images: ImageSet, classes: Tensor | None, config: EvalConfig, progress: Progress | None = None
) -> EvalReport:
    """Accuracy, cost, closeness to the unpruned embedding and retrieval for each method and keep rate.

    Every image is embedded and runs unpruned once, in float32; all methods and keep rates start from its tokens. Where
    `config.store` is a folder, an evaluation that was interrupted resumes where it stopped.

    Args:
        model: the frozen encoder.
        pruner: what decides at the location.
        images: one split; `config.images` may take a part of it.
        classes: (classes, E) float32, L2-normalised class embeddings in label order; None for images without labels, which have no
            accuracy, and for a model without text side, whose accuracy is that of the nearest labelled neighbours.
        config: what is compared.
        progress: advanced by images.

    Raises:
        ConfigError: a method does not suit the model, or two keeps are the same number of patches.
        DataError: there are classes, but an image has no label.
        ImageError: an image cannot be decoded.
    """
    progress = progress or SilentProgress()
    task = _prepare(model, pruner, images, classes, config, progress)
    chosen = task.images
    ledger = Ledger(len(chosen), config.store, _identity(task, pruner, config))
    known = Ledger(len(chosen), config.unpruned, _frozen_identity(task), name=UNPRUNED)
    _fill(task, ledger, known, config.batch, progress)
    known.save()
    texts = Texts.of(model, chosen.subset(list(task.drawn)), classes)
    rows = _Rows(task, ledger, texts).all()
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
        notes=(*notes(model, pruner, [method.name for method in task.methods], rows[0], (len(task.drawn), texts)), *task.left_out),
        prune_method=pruner.spec.method,
        retrieval_images=len(task.drawn),
        texts=texts.kind if texts else "",
        accuracy_by=_accuracy_by(task),
    )


@dataclass(frozen=True, slots=True)
class _Task:
    """What one pass over the images works on.

    Attributes:
        counts: the patches kept at each location, for each keep.
        drawn: the indices of the images whose embeddings are kept for retrieval -> their places among those.
        left_out: notes of methods that nobody asked for and that the encoder cannot do.
    """

    model: DualEncoder
    spec: PruneSpec
    images: ImageSet
    classes: Tensor | None
    methods: Sequence[Method]
    keeps: Sequence[Keep]
    counts: Sequence[Counts]
    golden: Tensor | None
    drawn: Mapping[int, int]
    left_out: Sequence[str]


def _prepare(model: DualEncoder, pruner: Pruner, images: ImageSet, classes: Tensor | None, config: EvalConfig, progress: Progress) -> _Task:
    """Checks everything before any work, and ranks the images for the oracle."""
    if classes is not None:
        wanted = (len(images.classnames), model.tower.embed_dim)
        if classes.shape != wanted:
            raise ShapeError(f"class embeddings have shape {tuple(classes.shape)}, but {wanted} is needed: one row for each class name")
        images.require_labels("accuracy")
    keeps, names = config.keeps_of(pruner.spec), config.methods_of(pruner.spec, recovered=pruner.recovered is not None)
    counts = pruner.spec.distinct_counts(keeps)
    learned = (pruner.tuned, pruner.tuned_classes, pruner.recovered)
    ingredients = Ingredients(model.tower, model.native, pruner.spec, pruner.scorers, config.seed, *learned)
    # Every other method is made before the images are ranked: what cannot run should say so at once.
    methods, left_out = make_methods(ingredients, [name for name in names if name != GOLDEN], counts, leave_out=config.methods is None)
    chosen = images.take(config.images, config.drawn_by)
    golden = _rank(model, pruner, chosen, classes, progress) if GOLDEN in names else None
    if golden is not None:
        methods[GOLDEN] = Golden(golden)
    kept = len(chosen) if _by_neighbours(model, chosen) else config.retrieval_images
    drawn = {index: place for place, index in enumerate(equally_spaced(len(chosen), kept))}
    ordered = [methods[name] for name in names if name in methods]
    return _Task(model, pruner.spec, chosen, classes, ordered, keeps, counts, golden, drawn, left_out)


def _identity(task: _Task, pruner: Pruner, config: EvalConfig) -> dict[str, object]:
    """Everything that a value of the ledger depends on."""
    tensors = {"classes": task.classes, "golden": task.golden, "tuned classes": pruner.tuned_classes}
    made_of: dict[str, Tensor | nn.Module | None] = {**tensors, "tuned": pruner.tuned, "recovered": pruner.recovered}
    return {
        **_frozen_identity(task),
        "run's images": asdict(task.model.preprocess),
        "logits": [task.model.logit_scale, task.model.logit_bias],
        "spec": asdict(task.spec),
        "made of": {name: content_digest(part) for name, part in made_of.items()},
        "scorers": [content_digest(scorer) for scorer in pruner.scorers],
        "asked": [[method.name for method in task.methods], task.counts, config.seed, len(task.drawn)],
    }


def _frozen_identity(task: _Task) -> dict[str, object]:
    """Everything that an unpruned embedding depends on."""
    model = task.model
    return {
        "version": __version__,
        "model": [model.name, model.weights_sha256, asdict(model.native_preprocess)],
        "images": task.images.digest(),
    }


def _entered(task: _Task, indices: Sequence[int], batch: int) -> Iterator[Entered]:
    """Each batch of images at the first location, and in every other size that is read."""
    model, device = task.model, task.model.tower.device
    native = None if model.native is model.tower else model.native
    sizes = {method.image_size(task.spec, counts) for method in task.methods for counts in task.counts} - {None, model.tower.image_size}
    read = [model.tower.image_size, *sorted(size for size in sizes | ({native.image_size} if native else set()) if size)]
    batches = (pixel_batches(task.images, replace(model.preprocess, size=size), indices, batch) for size in read)
    for (chosen, pixels), *others in zip(*batches, strict=True):
        entered = Entered.of(model.tower, pixels.to(device), chosen, task.spec)
        yield replace(entered, native=native, pixels=dict(zip(read, [pixels, *(part for _, part in others)], strict=True)))


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
        for entered in _entered(task, missing, batch):
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
    parts = list(_entered(task, chosen, batch))
    embedded, tokens = torch.cat([part.embedded for part in parts]), torch.cat([part.tokens for part in parts])
    return Entered(embedded, tokens, tuple(chosen), task.model.tower, task.spec)


def _cell(method: str, counts: Counts, what: str) -> str:
    return f"{method}@{'-'.join(map(str, counts))}/{what}"


def _measure(task: _Task, entered: Entered, ledger: Ledger) -> None:
    labels = torch.tensor([task.images.labels[index] for index in entered.indices], device=entered.tokens.device)
    kept = [row for row, index in enumerate(entered.indices) if index in task.drawn]
    places = [task.drawn[entered.indices[row]] for row in kept]

    def put(name: str, counts: Counts, embedding: Tensor, classes: Tensor | None) -> None:
        if classes is not None:
            right = task.model.logits(embedding, classes).argmax(dim=1) == labels
            ledger.put(_cell(name, counts, "right"), entered.indices, right)
        ledger.put(_cell(name, counts, "cosine"), entered.indices, (embedding * entered.unpruned).sum(dim=1))
        ledger.put(_cell(name, counts, "embedding"), places, embedding[kept], len(task.drawn))

    put(UNPRUNED, (), entered.unpruned, task.classes)
    for method in task.methods:
        for counts in task.counts:
            put(method.name, counts, method.encode(entered, counts), task.classes if method.classes is None else method.classes)
            if isinstance(method, AdaptiveMethod):
                ledger.put(_cell(method.name, counts, "gmacs"), entered.indices, method.spent(entered, counts))
        if task.golden is not None and isinstance(method, RankingMethod):
            ledger.put(f"{method.name}/order", entered.indices, method.order(entered).to(torch.int16))


class _Rows:
    """The rows of a report, from a ledger that has all images."""

    def __init__(self, task: _Task, ledger: Ledger, texts: Texts | None) -> None:
        self._task, self._ledger, self._texts = task, ledger, texts
        self._neighbours = Neighbours(ledger.column(_cell(UNPRUNED, (), "embedding")))

    def all(self) -> tuple[EvalRow, ...]:
        """The unpruned row, then each method's in the order of the keeps."""
        task, cost, native = self._task, self._task.model.tower.cost(), self._task.model.native
        rows = [self._row(UNPRUNED, 1.0, (), cost.full_gmacs(task.spec), native.image_size)]
        for method in task.methods:
            for keep, counts in zip(task.keeps, task.counts, strict=True):
                adaptive = isinstance(method, AdaptiveMethod)
                spent = float(self._column(method.name, counts, "gmacs").mean()) if adaptive else method.gmacs(cost, task.spec, counts)
                share = keep.resolve(task.spec.patches) / task.spec.patches if keep.is_count else keep.value
                size = method.image_size(task.spec, counts) or task.model.tower.image_size
                row = self._row(method.name, share, counts, spent, size, method.classes)
                if task.golden is not None and isinstance(method, RankingMethod):
                    row = replace(row, matching_rate=matching_rate(self._ledger.column(f"{method.name}/order"), task.golden, counts[0]))
                rows.append(row)
        return tuple(rows)

    def _row(self, method: str, keep: float, counts: Counts, gmacs: float, image_size: tuple[int, int], classes: Tensor | None = None) -> EvalRow:
        embeddings, texts = self._column(method, counts, "embedding"), self._texts
        if texts is not None and classes is not None:
            texts = texts.with_classes(classes)
        accuracy, lost, won = self._decisions(method, counts)
        return EvalRow(
            method=method,
            keep=keep,
            accuracy=accuracy,
            images=len(self._task.images),
            gmacs=gmacs,
            matching_rate=None,
            cosine=float(self._column(method, counts, "cosine").double().mean()),
            lost=lost,
            won=won,
            image_size=image_size,
            overlap_own=self._neighbours.own(embeddings),
            overlap_cross=self._neighbours.cross(embeddings),
            text_to_image=None if texts is None else texts.text_to_image(embeddings),
            image_to_text=None if texts is None else texts.image_to_text(embeddings),
        )

    def _decisions(self, method: str, counts: Counts) -> tuple[float, int, int] | tuple[None, None, None]:
        """Accuracy in percent, and the images lost and won against the unpruned encoder."""
        before, right = (self._right(*which) for which in ((UNPRUNED, ()), (method, counts)))
        if before is None or right is None:
            return None, None, None
        return 100 * int(right.sum()) / len(right), int((before & ~right).sum()), int((right & ~before).sum())

    def _right(self, method: str, counts: Counts) -> Tensor | None:
        """Which images (images,) bool get their class, from the class embeddings or from the nearest neighbours; None without labels."""
        if self._task.classes is not None:
            return self._column(method, counts, "right")
        if not _by_neighbours(self._task.model, self._task.images):
            return None
        return self._neighbours.classified(self._column(method, counts, "embedding"), torch.tensor(self._task.images.labels))

    def _column(self, method: str, counts: Counts, what: str) -> Tensor:
        return self._ledger.column(_cell(method, counts, what))


def _by_neighbours(model: DualEncoder, images: ImageSet) -> bool:
    return not model.has_text and NO_LABEL not in images.labels


def _accuracy_by(task: _Task) -> str:
    if task.classes is not None:
        return ZERO_SHOT
    return NEIGHBOURS if _by_neighbours(task.model, task.images) else ""


def _rank(model: DualEncoder, pruner: Pruner, images: ImageSet, classes: Tensor | None, progress: Progress) -> Tensor:
    """The golden ranking (images, N) int64 on the CPU."""
    return rank_images(GoldenSearch(model, pruner.spec.locations[0], pruner.golden, classes), images, pruner.cache, progress).ranking.long()
