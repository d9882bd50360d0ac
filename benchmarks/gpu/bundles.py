"""The same bundle on every engine that a GPU has, through `Encoder.encode_device`; an engine that cannot run says why."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.clock import Clock, Work, compared
from benchmarks.gpu.record import Record
from benchmarks.gpu.towers import LOCATION, make_default_scorer
from prtool.bundle import Bundle
from prtool.engines.base import EngineOptions, ShapeRange
from prtool.engines.registry import ENGINES
from prtool.runtime.encoder import Encoder
from prtool.spec import Keep
from prtool.trainer.models.dual_encoder import load_model
from prtool.trainer.models.predictor import ScorerConfig
from prtool.trainer.models.pruned import PrunedEncoder

KEEPS = (1.0, 0.6)
PRUNED_MODES = ("split", "fused")


def export(model: str, folder: Path, precisions: Sequence[str]) -> Path:
    """A bundle of random weights with the default scorer, validated against PyTorch like any other."""
    # Here, because a bundle that is there needs no onnx.
    from prtool.export.source import ExportSource
    from prtool.export.write import ExportOptions, export_bundle

    torch.manual_seed(0)
    dual = load_model(model)
    scorer = make_default_scorer(dual.tower)
    pruned = PrunedEncoder(dual.tower, [scorer], dual.tower.prune_spec((LOCATION,))).eval().requires_grad_(False)
    out, options = folder / model, ExportOptions(Keep.ratio(0.6), tuple(precisions))
    export_bundle(ExportSource(dual, pruned, ScorerConfig().arch, False, scorer.macs()), out, options)
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
    counts = {keep: opened.manifest.resolve(Keep.ratio(keep)) for keep in KEEPS}
    options = EngineOptions()
    options = replace(options, build=replace(options.build, batch=ShapeRange(batch, batch, batch), keeps=tuple(counts.values())))
    pixels = np.random.default_rng(0).standard_normal((batch, 3, *opened.manifest.preprocess.size)).astype(np.float32)
    with ExitStack() as stack:
        encoders = {
            mode: stack.enter_context(Encoder.load(opened, engine=engine, mode=mode, precision=chosen, options=options))
            for mode in ("full", *PRUNED_MODES)
        }
        cases = [("full", None), *((mode, keep) for mode in PRUNED_MODES for keep in KEEPS)]
        times = clock.interleaved({f"{mode} {keep}": _call(encoders[mode], pixels, keep) for mode, keep in cases})
        rows = []
        for mode, keep in cases:
            theoretical = None if keep is None else opened.manifest.theoretical_speedup(counts[keep])
            rows.append({"mode": mode, "keep": keep, **compared(times["full None"], times[f"{mode} {keep}"], theoretical)})
        info, on_device = encoders["full"].info, all(encoder.arrays is not None for encoder in encoders.values())
        return {"engine": info.name, "version": info.version, "device": info.device, "precision": chosen, "arrays_on_device": on_device, "rows": rows}


def _call(encoder: Encoder, pixels: npt.NDArray[np.float32], keep: float | None) -> Work:
    if encoder.arrays is None:
        return lambda: encoder.encode_pixels(pixels, keep)
    on_device = encoder.arrays.to_device(pixels)
    return lambda: encoder.encode_device(on_device, keep)


def gpu_engines() -> list[str]:
    """Every engine of the registry but those that are for CPUs alone."""
    return [name for name in ENGINES if name not in ("ort", "openvino")]
