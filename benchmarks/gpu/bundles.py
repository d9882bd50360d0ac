"""The bundles of every reducer on every engine that a GPU has, through `Encoder.encode_device`; an engine that cannot run says why."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.clock import Clock, Work, compared
from benchmarks.gpu.record import Record
from prtool.bundle import Bundle
from prtool.engines.base import EngineOptions, ShapeRange
from prtool.engines.registry import ENGINES
from prtool.manifest import Manifest
from prtool.runtime.encoder import Encoder
from prtool.spec import RANK, Keep

KEEPS = (1.0, 0.6)
SHARES = (0.735, 0.51, 0.41)
"""Of the unpruned MACs: what every reducer is compared at."""


@dataclass(frozen=True, slots=True)
class GpuCase:
    """One graph at one keep: mode "full" has neither patches `k` nor a keep; `keep` is the ratio that was asked for, None for a share."""

    mode: str
    k: int | None = None
    keep: float | None = None

    @property
    def name(self) -> str:
        return f"{self.mode} {self.k} {self.keep}"


def make_bundles(model: str, folder: Path, precisions: Sequence[str]) -> list[str]:
    """Paths of bundles of random weights that rank, merge and read smaller images, each validated against PyTorch like any other."""
    # Here, because a bundle that is there needs no onnx.
    from benchmarks.reducers import Workshop, chosen, default_reducers
    from prtool.progress import SilentProgress

    workshop = Workshop(folder, model, "", "", 0, {}, SilentProgress())
    tower = workshop.tower()
    return [str(workshop.bundle(reducer, precisions).path) for reducer in chosen(default_reducers(tower), tower, SHARES)]


def measure_bundle(record: Record, bundle: Path, engines: Sequence[str], batches: Sequence[int], precision: str, clock: Clock) -> None:
    """One entry for each engine and batch: unpruned and shortened in the same rounds."""
    manifest = Bundle.open(bundle).manifest
    side, native = manifest.preprocess.size[0], manifest.native_size[0]
    how = "" if manifest.prune.method == RANK and side == native else f" {manifest.prune.method}@{side}"
    for engine in engines:
        for batch in batches:
            case = f"{manifest.model.name}{how} {precision} {engine} batch {batch}"
            record.measure("bundle", case, lambda e=engine, b=batch: measure_engine(bundle, e, precision, b, clock))


def cases_of(manifest: Manifest) -> list[GpuCase]:
    """The unpruned graph; where patches are ranked both modes at `KEEPS`; and the one graph at the keeps that cost `SHARES`."""
    from benchmarks.reducers import keeps_of

    ranked = manifest.prune.method == RANK
    kept = [GpuCase(mode, manifest.resolve(Keep.ratio(keep)), keep) for mode in ("split", "fused") for keep in KEEPS if ranked]
    return [GpuCase("full"), *kept, *(GpuCase("fused", k) for k in keeps_of(manifest, SHARES).values())]


def measure_engine(bundle: Path, engine: str, precision: str, batch: int, clock: Clock) -> dict[str, Any]:
    """Times of one engine, from pixels on the device to embeddings on the device where it keeps arrays there, else from and to the host.

    Raises:
        PrtoolError: the engine cannot be opened, or fails; the message is the reason that is recorded.
    """
    opened = Bundle.open(bundle)
    manifest, cases = opened.manifest, cases_of(opened.manifest)
    chosen = precision if precision in ENGINES[engine].precisions else "fp32"
    options, kept = EngineOptions(), tuple(sorted({case.k for case in cases if case.k is not None}))
    options = replace(options, build=replace(options.build, batch=ShapeRange(batch, batch, batch), keeps=kept))
    with ExitStack() as stack:
        encoders = {
            mode: stack.enter_context(Encoder.load(opened, engine=engine, mode=mode, precision=chosen, options=options))
            for mode in dict.fromkeys(case.mode for case in cases)
        }
        works = {case.name: _call(encoders[case.mode], _pixels(manifest, case.mode, batch), _counts(manifest, case)) for case in cases}
        times = clock.interleaved(works)
        rows = []
        for case in cases:
            theoretical = None if case.k is None else manifest.theoretical_speedup(case.k)
            size = manifest.preprocess_for(case.mode).size[0]
            facts = {"mode": case.mode, "keep": case.keep, "k": case.k, "image_size": size, "method": manifest.prune.method}
            rows.append({**facts, **compared(times[cases[0].name], times[case.name], theoretical)})
        info, on_device = encoders["full"].info, all(encoder.arrays is not None for encoder in encoders.values())
        return {"engine": info.name, "version": info.version, "device": info.device, "precision": chosen, "arrays_on_device": on_device, "rows": rows}


def _pixels(manifest: Manifest, mode: str, batch: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((batch, 3, *manifest.preprocess_for(mode).size)).astype(np.float32)


def _counts(manifest: Manifest, case: GpuCase) -> tuple[int, ...] | None:
    return None if case.k is None else manifest.prune.counts(case.k) or None


def _call(encoder: Encoder, pixels: npt.NDArray[np.float32], counts: tuple[int, ...] | None) -> Work:
    if encoder.arrays is None:
        return lambda: encoder.encode_pixels(pixels, counts)
    on_device = encoder.arrays.to_device(pixels)
    return lambda: encoder.encode_device(on_device, counts)


def gpu_engines() -> list[str]:
    """Every engine of the registry but those that are for CPUs alone."""
    return [name for name in ENGINES if name not in ("ort", "openvino")]
