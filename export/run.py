"""Export a run to a bundle, and compare a bundle with the PyTorch model of its run."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prtool.bundle import Bundle
from prtool.errors import ConfigError, DataError
from prtool.export.checks import check_export
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.agreement import KeepAgreement, VerifyRequest, check_agreement, verify_with_model
from prtool.export.validation.decisions import Decisions, Unpruned
from prtool.export.validation.probe import keep_counts
from prtool.export.write import ExportOptions, write_bundle
from prtool.manifest import Manifest
from prtool.progress import Progress
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.verify import gate_of
from prtool.spec import RANK
from prtool.trainer.data.load import load_split
from prtool.trainer.evaluation.report import figures
from prtool.trainer.models.predictor import scorer_macs
from prtool.trainer.runs.checkpoint import Checkpoint

_PARITY_IMAGES = 16
# NNCF's scales settle within some dozens of images.
_CALIBRATION_IMAGES = 96
_HELD_OUT_IMAGES = 64


@dataclass(frozen=True, slots=True)
class RunAgreement:
    """An engine compared with a run's PyTorch model on real images: one row a keep count."""

    engine: str
    precision: str
    data: str
    rows: tuple[KeepAgreement, ...]
    judged: Decisions

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles, and one list of cells a row."""
        cells = []
        for row in self.rows:
            shares = map(_percent, (row.top1, row.neighbours, row.same_patches))
            recall = [_recall(row, name) for name in ("text_to_image", "image_to_text")]
            cells.append([str(row.k), str(row.images), f"{row.cosine_min:.7f}", f"{row.cosine_mean:.7f}", *shares, *recall])
        columns = ["patches kept", "images", "worst cosine", "mean cosine", "same top-1", "same neighbours", "same patches"]
        return [*columns, "text to image @1/5/10 (PyTorch)", "image to text @1/5/10 (PyTorch)"], cells


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _recall(row: KeepAgreement, direction: str) -> str:
    if row.recall is None:
        return "-"
    return f"{figures(*getattr(row.recall, direction))} ({figures(*getattr(row.recall_pytorch, direction))})"


def source_of(run: Path) -> ExportSource:
    """The model, pruned encoder and classes of a run.

    Raises:
        CheckpointError: no checkpoint, or a damaged one, or the model's weights changed.
        ModelError: the model cannot be loaded.
    """
    checkpoint = Checkpoint.load(run)
    model = checkpoint.load_model()
    named = model.has_text and bool(checkpoint.classnames)
    return ExportSource(
        model=model,
        pruned=checkpoint.pruned_encoder(model.tower),
        scorer_name=checkpoint.scorer_config.arch if checkpoint.prune.method == RANK else "",
        scorer_trained=checkpoint.scorer_trained,
        scorer_macs=scorer_macs(checkpoint.scorers()),
        recovery=checkpoint.recovery.kept,
        classnames=checkpoint.classnames if named else (),
        templates=checkpoint.templates if named else (),
        class_embeddings=checkpoint.class_embeddings(model) if named and checkpoint.context() is not None else None,
    )


def export_run(run: Path, out: Path, options: ExportOptions, data: str | Path | None = None, progress: Progress | None = None) -> Manifest:
    """Exports a run; see `write_bundle`.

    Args:
        run: folder of a checkpoint.
        out: the bundle's folder.
        options: default keep and precisions; without images, those of `data` are taken.
        data: data folder; None takes the run's while it still exists, else seeded noise (parity.json says which). Its train split
            sets int8's scales; the reduced precisions are compared on its val split, or else test.
        progress: advanced once per graph, then once per comparison.

    Raises:
        DataError: `data` cannot be read.
        ConfigError: int8 is requested, and there are no images; or `out` is or holds an input, or something other than a bundle.
        ParityError: a graph disagrees with PyTorch; nothing was written.
    """
    folder = check_export(run, out, options.keep, options.precisions, data, options.patch_tokens)
    source = source_of(run)
    if folder is not None:
        options = _with_images(options, folder, source)
    return write_bundle(source, out, options, progress)


def verify_run(bundle: str | Path | Bundle, ask: VerifyRequest, run: Path, data: str | Path) -> RunAgreement:
    """Compares an engine with the PyTorch model of a run in float32, on images of a data folder's test split, at three keep counts.

    Args:
        bundle: a bundle's folder (every digest is checked), or an opened bundle.
        ask: engine, precision and number of images.
        run: the run that the bundle was exported from.
        data: data folder.

    Raises:
        ConfigError: the bundle was made from another model or recovery than the run's, or the engine or bundle lacks the precision.
        ParityError: the mean cosine or the top-1 agreement is below the precision's gate; the message names the worst images.
    """
    opened, source = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle), source_of(run)
    if opened.manifest.model.weights_sha256 != source.model.weights_sha256:
        raise ConfigError(f"{opened.path} was made from other weights than those of {run}; give --run the run that it was exported from")
    own, wanted = opened.manifest.preprocess.size, source.model.preprocess.size
    if own != wanted:
        raise ConfigError(f"{opened.path} reads images of {own} px, but {run} was made for {wanted} px; export the run again")
    if opened.manifest.prune != source.spec:
        raise ConfigError(f"{opened.path} prunes as {opened.manifest.prune}, but {run} as {source.spec}; export the run again")
    if opened.manifest.recovery != source.recovery:
        raise ConfigError(f"{opened.path} has another recovery in its weights than {run}; export the run again")
    counts = keep_counts(opened.manifest.default_keep, opened.manifest.keep_range)
    pixels, names, labels = _images(data, "test", ask.images, source)
    judged = Unpruned.of(source, pixels, labels).judged(gate_of(ask.precision))
    rows = verify_with_model(opened, source, pixels, counts, ask, labels)
    check_agreement(rows, ask, judged, names)
    return RunAgreement(ask.engine, ask.precision, str(data), rows, judged)


def _with_images(options: ExportOptions, data: str | Path, source: ExportSource) -> ExportOptions:
    """The options with the images that they need and lack."""
    if options.pixels is None:
        options = replace(options, pixels=_images(data, "train", _PARITY_IMAGES, source)[0])
    if options.calibration is None and "int8" in options.precisions:
        options = replace(options, calibration=_images(data, "train", _CALIBRATION_IMAGES, source)[0])
    if options.held_out is None and set(options.precisions) - {"fp32"}:
        held_out, _, labels = _images(data, _held_out_split(data), _HELD_OUT_IMAGES, source)
        options = replace(options, held_out=held_out, labels=labels)
    return options


def _held_out_split(data: str | Path) -> str:
    """The validation split where there is one: the test split is for the reported results."""
    try:
        return "val" if len(load_split(data, "val")) else "test"
    except DataError:
        return "test"


def _images(data: str | Path, split: str, images: int, source: ExportSource) -> tuple[Pixels, list[str], tuple[int, ...]]:
    """Prepared images, their files, and their classes among the run's; () where those are not known."""
    found = load_split(data, split).take(images)
    files = [found.source(index) for index in range(len(found))]
    own, native = source.model.preprocess, source.model.native_preprocess
    pixels = Pixels(*(torch.from_numpy(prepare_batch(files, each)) for each in dict.fromkeys((own, native))))
    labels = tuple(found.labels) if tuple(found.classnames) == tuple(source.classnames) else ()
    return pixels, [str(found.root / path) for path in found.paths], labels
