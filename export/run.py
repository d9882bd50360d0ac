"""The export and verify verbs: from a run's folder to a proved bundle, and from a bundle back to the run's PyTorch model."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prtool.bundle import Bundle
from prtool.errors import ConfigError, DataError
from prtool.export.agreement import KeepAgreement, VerifyRequest, check_agreement, verify_with_model
from prtool.export.probe import keep_counts
from prtool.export.source import ExportSource
from prtool.export.write import BUNDLE, ExportOptions, export_bundle
from prtool.files import check_output
from prtool.manifest import Manifest
from prtool.progress import Progress
from prtool.runtime.preprocess import prepare_batch
from prtool.spec import Preprocess
from prtool.trainer.checkpoint import Checkpoint
from prtool.trainer.data import data_exists, load_split
from prtool.trainer.inputs import input_paths

_PARITY_IMAGES = 16
# NNCF's scales settle within some dozens of images.
_CALIBRATION_IMAGES = 96
_HELD_OUT_IMAGES = 64


@dataclass(frozen=True, slots=True)
class RunAgreement:
    """An engine beside a run's PyTorch model on real images: one row a keep count."""

    engine: str
    precision: str
    data: str
    rows: tuple[KeepAgreement, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles, and one list of cells a row."""
        cells = [
            [str(row.k), str(row.images), f"{row.cosine_min:.7f}", f"{row.cosine_mean:.7f}", _percent(row.top1), _percent(row.same_patches)]
            for row in self.rows
        ]
        return ["patches kept", "images", "worst cosine", "mean cosine", "same top-1", "same patches"], cells


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def source_of(run: Path) -> ExportSource:
    """The model, pruned encoder and classes of a run.

    Raises:
        CheckpointError: no checkpoint, or a damaged one, or the model's weights changed.
        ModelError: the model cannot be loaded.
    """
    checkpoint = Checkpoint.load(run)
    model = checkpoint.load_model()
    return ExportSource(
        model=model,
        pruned=checkpoint.pruned_encoder(model),
        scorer_name=checkpoint.scorer_config.arch,
        scorer_trained=checkpoint.scorer_trained,
        scorer_macs=checkpoint.scorer_macs(),
        classnames=checkpoint.classnames,
        templates=checkpoint.templates if checkpoint.classnames else (),
        class_embeddings=checkpoint.class_embeddings(model) if checkpoint.classnames and checkpoint.context() is not None else None,
    )


def export_run(run: Path, out: Path, options: ExportOptions, data: Path | None = None, progress: Progress | None = None) -> Manifest:
    """Exports a run; see `export_bundle`.

    Args:
        run: folder of a checkpoint.
        out: the bundle's folder.
        options: default keep and precisions; without images, those of `data` are taken.
        data: data folder; None takes the run's while it still exists, else seeded noise (parity.json says which). Its train split
            sets int8's scales, its val split (or else test) proves the reduced precisions.
        progress: hears one step a graph, then one a comparison.

    Raises:
        DataError: `data` cannot be read.
        ConfigError: int8 is asked for, and there are no images; or `out` is or holds an input, or something else than a bundle
            stands there.
        ParityError: a graph disagrees with PyTorch; nothing was written.
    """
    checkpoint = Checkpoint.load(run)
    recorded = checkpoint.data.root
    folder = data or (recorded if recorded and data_exists(recorded) else None)
    check_output(out, BUNDLE, (run, *input_paths(checkpoint.model, checkpoint.pretrained, folder)))
    source = source_of(run)
    if folder is not None:
        options = _with_images(options, folder, source.model.preprocess)
    return export_bundle(source, out, options, progress)


def verify_run(bundle: str | Path | Bundle, ask: VerifyRequest, run: Path, data: Path) -> RunAgreement:
    """Compares an engine with the PyTorch model of a run in float32, on images of a data folder's test split, at three keep counts.

    Args:
        bundle: a bundle's folder (every digest is checked), or an opened bundle.
        ask: engine, precision and number of images.
        run: the run that the bundle was exported from.
        data: data folder.

    Raises:
        ConfigError: the bundle was made from another model than the run's, or the engine or bundle lacks the precision.
        ParityError: the mean cosine or the top-1 agreement is below the precision's gate; the message names the worst images.
    """
    opened, source = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle), source_of(run)
    if opened.manifest.model.weights_sha256 != source.model.weights_sha256:
        raise ConfigError(f"{opened.path} was made from other weights than those of {run}; give --run the run that it was exported from")
    if opened.manifest.prune != source.spec:
        raise ConfigError(f"{opened.path} prunes as {opened.manifest.prune}, but {run} as {source.spec}; export the run again")
    counts = keep_counts(opened.manifest.default_keep, opened.manifest.prune.patches)
    pixels, names = _pixels(data, "test", ask.images, source.model.preprocess)
    rows = verify_with_model(opened, source, pixels, counts, ask)
    check_agreement(rows, ask.precision, ask.engine, names)
    return RunAgreement(ask.engine, ask.precision, str(data), rows)


def _with_images(options: ExportOptions, data: str | Path, preprocess: Preprocess) -> ExportOptions:
    """The options with the images that they need and lack."""
    pixels = options.pixels if options.pixels is not None else _pixels(data, "train", _PARITY_IMAGES, preprocess)[0]
    reduced = set(options.precisions) - {"fp32"}
    calibration, held_out = options.calibration, options.held_out
    if calibration is None and "int8" in reduced:
        calibration = _pixels(data, "train", _CALIBRATION_IMAGES, preprocess)[0]
    if held_out is None and reduced:
        held_out = _pixels(data, _held_out_split(data), _HELD_OUT_IMAGES, preprocess)[0]
    return replace(options, pixels=pixels, calibration=calibration, held_out=held_out)


def _held_out_split(data: str | Path) -> str:
    """The validation part where there is one: the test part is for the figures that are reported."""
    try:
        return "val" if len(load_split(data, "val")) else "test"
    except DataError:
        return "test"


def _pixels(data: str | Path, split: str, images: int, preprocess: Preprocess) -> tuple[Tensor, list[str]]:
    """Prepared images, (images, 3, height, width) float32, and their files."""
    found = load_split(data, split).take(images)
    sources = [found.source(index) for index in range(len(found))]
    return torch.from_numpy(prepare_batch(sources, preprocess)), [str(found.root / path) for path in found.paths]
