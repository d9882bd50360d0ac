"""The export and verify verbs: from a run's folder to a proved bundle, and from a bundle back to the run's PyTorch model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prtool.bundle import Bundle
from prtool.errors import ConfigError, ParityError
from prtool.export.agreement import KeepAgreement, verify_with_model
from prtool.export.probe import keep_counts
from prtool.export.source import ExportSource
from prtool.export.write import ExportOptions, export_bundle
from prtool.manifest import Manifest
from prtool.progress import Progress
from prtool.runtime.preprocess import prepare_batch
from prtool.runtime.verify import gate_of
from prtool.spec import Preprocess
from prtool.trainer.checkpoint import Checkpoint
from prtool.trainer.data import load_split

_PARITY_IMAGES = 16
_LEAST_TOP1 = 0.99


@dataclass(frozen=True, slots=True)
class RunAgreement:
    """An engine beside a run's PyTorch model on real images: one row a keep count."""

    engine: str
    data: str
    rows: tuple[KeepAgreement, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles, and one list of cells a row."""
        cells = [
            [str(row.k), str(row.images), f"{row.cosine_min:.7f}", f"{row.cosine_mean:.7f}", "-" if row.top1 is None else f"{100 * row.top1:.2f} %"]
            for row in self.rows
        ]
        return ["patches kept", "images", "worst cosine", "mean cosine", "same top-1"], cells


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
        scorer_macs=checkpoint.scorer().macs(),
        classnames=checkpoint.classnames,
        templates=checkpoint.templates if checkpoint.classnames else (),
    )


def export_run(run: Path, out: Path, options: ExportOptions, data: Path | None = None, progress: Progress | None = None) -> Manifest:
    """Exports a run; see `export_bundle`.

    Args:
        run: folder of a checkpoint.
        out: the bundle's folder.
        options: default keep and precision; without pixels, images of `data` are taken for the comparison with PyTorch.
        data: data folder; None takes the run's while it still exists, else seeded noise (parity.json says which).
        progress: hears one step a graph, then one a comparison.

    Raises:
        DataError: `data` cannot be read.
        ParityError: a graph disagrees with PyTorch; nothing was written.
    """
    source = source_of(run)
    recorded = Checkpoint.load(run).data.root
    folder = data or (Path(recorded) if recorded and Path(recorded).is_dir() else None)
    if options.pixels is None and folder is not None:
        pixels = torch.from_numpy(_pixels(folder, "train", _PARITY_IMAGES, source.model.preprocess))
        options = ExportOptions(options.keep, options.precision, pixels, options.inline_limit_bytes)
    return export_bundle(source, out, options, progress)


def verify_run(bundle: str | Path, engine: str, run: Path, data: Path, images: int = 64) -> RunAgreement:
    """Compares an engine with the PyTorch model of a run, on images of a data folder's test split, at three keep counts.

    Args:
        bundle: the bundle's folder; every digest is checked.
        engine: a name of the engine registry.
        run: the run that the bundle was exported from.
        data: data folder.
        images: at most this many.

    Raises:
        ConfigError: the bundle was made from another model than the run's.
        ParityError: the mean cosine is below the precision's gate, or fewer than 99 % of the images keep their class.
    """
    opened, source = Bundle.open(bundle), source_of(run)
    if opened.manifest.model.weights_sha256 != source.model.weights_sha256:
        raise ConfigError(f"{bundle} was made from other weights than those of {run}; give --run the run that it was exported from")
    counts = keep_counts(opened.manifest.default_keep, opened.manifest.prune.patches)
    pixels = torch.from_numpy(_pixels(data, "test", images, source.model.preprocess))
    rows = verify_with_model(opened, source, pixels, counts, engine=engine)
    gate = gate_of("fp32")
    for row in rows:
        if row.cosine_mean < gate or (row.top1 is not None and row.top1 < _LEAST_TOP1):
            raise ParityError(
                f"{engine} disagrees with PyTorch at {row.k} patches: mean cosine {row.cosine_mean:.6f} (gate {gate}), same top-1 {row.top1}; "
                "export the bundle again from this run"
            )
    return RunAgreement(engine, str(data), rows)


def _pixels(data: Path, split: str, images: int, preprocess: Preprocess) -> np.ndarray[Any, np.dtype[np.float32]]:
    found = load_split(data, split).take(images)
    return prepare_batch([found.file(index) for index in range(len(found))], preprocess)
