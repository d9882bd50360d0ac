"""Pruned and unpruned in PyTorch, each whole chain as one CUDA graph, and the split chain compared with the sum of its parts."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import Clock, Work, compared
from benchmarks.gpu.record import Record
from benchmarks.gpu.towers import Encoder, make_encoder, pixels_for
from prtool.engines.pytorch.arrays import torch_arrays

PARTS_AT = 0.6
Forwards = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]
"""full, pre and post of an `Encoder`, as they are or compiled."""


@dataclass(frozen=True, slots=True)
class SpeedPlan:
    """What is measured: every combination."""

    models: Sequence[str]
    precisions: Sequence[str]
    ways: Sequence[str]
    batches: Sequence[int]
    keeps: Sequence[float]
    compile_mode: str


def measure_speed(record: Record, plan: SpeedPlan, clock: Clock) -> None:
    """One entry for each model, precision, way and batch: unpruned and every keep in the same rounds."""
    for model in plan.models:
        for precision in plan.precisions:
            names = {(way, batch): f"{model} {precision} {way} batch {batch}" for way in plan.ways for batch in plan.batches}
            if all(record.parts.get("speed", {}).get(name, {}).get("state") == "done" for name in names.values()):
                continue
            encoder = make_encoder(model, precision, clock.device)
            for way in plan.ways:
                torch.compiler.reset()
                forwards = _forwards(encoder, way, plan.compile_mode)
                for batch in plan.batches:
                    record.measure("speed", names[way, batch], lambda b=batch, f=forwards, e=encoder: measure_batch(e, f, b, plan.keeps, clock))
            del encoder, forwards
            _free(clock.device)


def measure_batch(encoder: Encoder, forwards: Forwards, batch: int, keeps: Sequence[float], clock: Clock) -> dict[str, Any]:
    """Times of one batch size; what is recorded goes when it is done."""
    _free(clock.device)
    if clock.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(clock.device)
    with torch.no_grad():
        works = _works(encoder, forwards, pixels_for(encoder, batch, clock.device), keeps)
        times = clock.interleaved(works)
    rows = [{"keep": None, "k": encoder.prune.patches, "images_per_s": 1e3 * batch / median(times["full"]), **compared(times["full"], times["full"])}]
    for keep in keeps:
        case = times[f"keep {keep}"]
        row = {"keep": keep, "k": encoder.count(keep), "images_per_s": 1e3 * batch / median(case)}
        rows.append({**row, **compared(times["full"], case, encoder.theoretical_speedup(keep))})
    found: dict[str, Any] = {"rows": rows, "tflops_unpruned": _tflops(encoder, batch, median(times["full"]))}
    if PARTS_AT in keeps:
        found["parts"] = _parts(times)
    if clock.device.type == "cuda":
        found["peak_memory_mib"] = torch.cuda.max_memory_allocated(clock.device) / 2**20
    return found


def _works(encoder: Encoder, forwards: Forwards, pixels: Tensor, keeps: Sequence[float]) -> dict[str, Work]:
    full, pre, post = forwards
    arrays, prefix = torch_arrays(str(pixels.device)), encoder.prune.prefix_tokens

    def chain(k: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            tokens, scores = pre(pixels)
            kept: Tensor = post(arrays.gather(tokens, arrays.select(scores, k), prefix, 0))
            return kept

        return run

    works: dict[str, Work] = {"full": arrays.capture(lambda: full(pixels))}
    for keep in keeps:
        works[f"keep {keep}"] = arrays.capture(chain(encoder.count(keep)))
    if PARTS_AT in keeps:
        k = encoder.count(PARTS_AT)
        tokens, scores = pre(pixels)
        kept = arrays.gather(tokens, arrays.select(scores, k), prefix, 0)
        works["part pre"] = arrays.capture(lambda: pre(pixels)[1])
        works["part select"] = arrays.capture(lambda: arrays.gather(tokens, arrays.select(scores, k), prefix, 0))
        works["part post"] = arrays.capture(lambda: post(kept))
    return works


def _parts(times: dict[str, list[float]]) -> dict[str, float]:
    """The chain compared with the sum of its parts, each part a CUDA graph of its own in the same rounds."""
    parts = [times[f"part {name}"] for name in ("pre", "select", "post")]
    sums = [sum(values) for values in zip(*parts, strict=True)]
    whole = times[f"keep {PARTS_AT}"]
    return {
        "keep": PARTS_AT,
        "pre_ms": median(parts[0]),
        "select_ms": median(parts[1]),
        "post_ms": median(parts[2]),
        "chain_ms": median(whole),
        "chain_over_sum": median(a / b for a, b in zip(whole, sums, strict=True)),
    }


def _tflops(encoder: Encoder, batch: int, milliseconds: float) -> float:
    """10^12 operations a second of the unpruned tower; a multiply-accumulate is two."""
    giga_operations = 2 * batch * encoder.cost.full_gmacs(encoder.prune)
    return giga_operations / milliseconds


def _forwards(encoder: Encoder, way: str, mode: str) -> Forwards:
    if way == "eager":
        return encoder.full, encoder.pre, encoder.post
    full, pre, post = (_dynamic(torch.compile(function, fullgraph=True, mode=mode)) for function in (encoder.full, encoder.pre, encoder.post))
    return full, pre, post


def _dynamic(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Batch and tokens are symbolic, so that one program serves all sizes (a batch of 1 has its own)."""

    def call(tensor: Tensor) -> Any:
        view = tensor.view(tensor.shape)
        for axis in (0, 1) if tensor.dim() == 3 else (0,):
            torch._dynamo.maybe_mark_dynamic(view, axis)
        return function(view)

    return call


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
