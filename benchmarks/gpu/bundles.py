"""The same bundle on every engine that a GPU has, through `Encoder.encode_device`; an engine that cannot run says why."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from on_gpu.clock import Clock, Work, compared
from on_gpu.record import Record
from on_gpu.towers import LOCATION, TINY
from prtool.bundle import Bundle
from prtool.engines.base import EngineOptions, ShapeRange
from prtool.engines.registry import ENGINES
from prtool.runtime.encoder import Encoder
from prtool.spec import Keep

KEEPS = (1.0, 0.6)
PRUNED_MODES = ("split", "fused")


def export(model: str, folder: Path, precisions: Sequence[str]) -> Path:
    """A bundle of random weights, with a scorer as it is shipped, proved against PyTorch like any other."""
    import torch

    from prtool.export.source import ExportSource
    from prtool.export.write import ExportOptions, export_bundle
    from prtool.trainer.models.checkerboard import CheckerboardScorer
    from prtool.trainer.models.dual_encoder import load_model
    from prtool.trainer.models.predictor import ScorerConfig, make_scorer
    from prtool.trainer.models.pruned import PrunedEncoder

    torch.manual_seed(0)
    dual = load_model(model)
    tower, config = dual.tower, ScorerConfig()
    scorer = CheckerboardScorer(make_scorer(config, tower.width, tower.patches, tower.prefix_tokens), tower.grid, config.checkerboard)
    pruned = PrunedEncoder(tower, [scorer], tower.prune_spec((LOCATION,))).eval().requires_grad_(False)
    out = folder / model
    export_bundle(ExportSource(dual, pruned, config.arch, False, scorer.macs()), out, ExportOptions(Keep.ratio(0.6), tuple(precisions)))
    return out


def measure_bundle(record: Record, bundle: Path, engines: Sequence[str], batches: Sequence[int], precision: str, clock: Clock) -> None:
    """One entry for each engine and batch: unpruned and pruned in the same rounds."""
    name = Bundle.open(bundle).manifest.model.name
    for engine in engines:
        for batch in batches:
            case = f"{name} {precision} {engine} batch {batch}"
            record.measure("bundle", case, lambda e=engine, b=batch: measure_engine(bundle, e, precision, b, clock))


def measure_engine(bundle: Path, engine: str, precision: str, batch: int, clock: Clock) -> dict[str, Any]:
    """Times of one engine, from pixels on the device to embeddings on the device where it keeps arrays there, else from and to the host.

    Raises:
        PrtoolError: the engine cannot be opened, or fails; the message is the reason that is recorded.
    """
    opened = Bundle.open(bundle)
    chosen = precision if precision in ENGINES[engine].precisions else "fp32"
    options = EngineOptions()
    sizes = ShapeRange(batch, batch, batch)
    options = replace(options, build=replace(options.build, batch=sizes, keeps=tuple(opened.manifest.resolve(Keep.ratio(keep)) for keep in KEEPS)))
    height, width = opened.manifest.preprocess.size
    pixels = np.random.default_rng(0).standard_normal((batch, 3, height, width)).astype(np.float32)
    encoders = {mode: Encoder.load(opened, engine=engine, mode=mode, precision=chosen, options=options) for mode in ("full", *PRUNED_MODES)}
    try:
        libraries = {mode: encoder.arrays for mode, encoder in encoders.items()}
        on_device = None not in libraries.values()
        works: dict[str, Work] = {}
        for mode, encoder in encoders.items():
            for keep in (None,) if mode == "full" else KEEPS:
                works[f"{mode} {keep}"] = _call(encoder, pixels, keep)
        times = clock.interleaved(works)
        rows = []
        for case, values in times.items():
            mode, _, keep = case.partition(" ")
            bound = None if mode == "full" else opened.manifest.theoretical_speedup(opened.manifest.resolve(Keep.ratio(float(keep))))
            rows.append({"mode": mode, "keep": None if mode == "full" else float(keep), **compared(times["full None"], values, bound)})
        info = encoders["full"].info
        return {"engine": info.name, "version": info.version, "device": info.device, "precision": chosen, "arrays_on_device": on_device, "rows": rows}
    finally:
        for encoder in encoders.values():
            encoder.close()


def _call(encoder: Encoder, pixels: npt.NDArray[np.float32], keep: float | None) -> Work:
    if encoder.arrays is None:
        return lambda: encoder.encode_pixels(pixels, keep)
    on_device = encoder.arrays.to_device(pixels)
    return lambda: encoder.encode_device(on_device, keep)


def gpu_engines() -> list[str]:
    """Every engine of the registry but those that are for CPUs alone."""
    return [name for name in ENGINES if name not in ("ort", "openvino")]


def is_exportable(model: str) -> bool:
    """Whether open_clip makes a whole dual encoder of that name."""
    return model != TINY
