"""Every row in eager PyTorch, from pixels to embeddings: what a method takes without an export."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.frontier.points import Point
from benchmarks.race import Encode, Entrant, Pixels
from benchmarks.reducers import Reducer, Workshop
from prtool.export.run import source_of
from prtool.export.source import ExportSource
from prtool.runtime.images.preprocess import prepare_batch
from prtool.spec import RANK
from prtool.trainer.evaluation.baselines.base import AdaptiveMethod, Entered, Method
from prtool.trainer.evaluation.baselines.registry import METHODS, Ingredients
from prtool.trainer.models.tower import VisionTower

LIBRARY = "torch"


def eager_entrants(workshop: Workshop, points: Sequence[Point], images: Sequence[bytes]) -> list[Entrant]:
    """The unpruned encoder, then each point's; methods that are fitted to a budget are fitted to these very `images`."""
    sources = {reducer: source_of(workshop.run(reducer)) for reducer in dict.fromkeys(point.reducer for point in points)}
    native = sources.get(Reducer(RANK)) or next(iter(sources.values()))
    full, preprocess = native.model.native, native.model.native_preprocess
    entrants = [Entrant(preprocess, _running(lambda pixels: functional.normalize(full(pixels), dim=-1)), LIBRARY)]
    baselines: dict[str, Method] = {}
    for point in points:
        source = sources[point.reducer]
        if point.exports:
            entrants.append(Entrant(source.model.preprocess, _running(_exported(source, point.k)), LIBRARY))
            continue
        # Recovery changes weights only: it takes the same time.
        name = point.method.removesuffix("+")
        if name not in baselines:
            counts = [p.k for p in points if p.method.removesuffix("+") == name]
            baselines[name] = _method(name, source, counts, images, workshop.seed)
        entrants.append(Entrant(source.model.preprocess, _running(_fresh(baselines[name], source, point.k)), LIBRARY))
    return entrants


def _exported(source: ExportSource, k: int) -> Callable[[Tensor], Tensor]:
    counts = source.spec.counts(k)
    return lambda pixels: source.pruned.encode(pixels, counts)


def _method(name: str, source: ExportSource, keeps: Sequence[int], images: Sequence[bytes], seed: int) -> Method:
    method = METHODS[name](Ingredients(source.model.tower, source.model.native, source.spec, (), seed))
    if isinstance(method, AdaptiveMethod):
        pixels = torch.from_numpy(prepare_batch(list(images), source.model.preprocess))
        with torch.inference_mode():
            method.calibrate(_entered(source, pixels, start=True), [source.spec.counts(k) for k in keeps])
    return method


def _fresh(method: Method, source: ExportSource, k: int) -> Callable[[Tensor], Tensor]:
    # An adaptive method begins in the first block.
    counts, start = source.spec.counts(k), isinstance(method, AdaptiveMethod)
    return lambda pixels: method.encode(_entered(source, pixels, start=start), counts)


def _entered(source: ExportSource, pixels: Tensor, *, start: bool) -> Entered:
    """The batch with nothing known of it yet; with `start` no block has run, for methods that begin in the first."""
    tower: VisionTower = source.model.tower
    indices = range(len(pixels))
    if not start:
        return Entered.of(tower, pixels, indices, source.spec)
    embedded = tower.embed(pixels)
    return Entered(embedded, embedded, tuple(indices), tower, source.spec)


def _running(forward: Callable[[Tensor], Tensor]) -> Encode:
    def run(pixels: Pixels) -> Pixels:
        with torch.inference_mode():
            found: Pixels = forward(torch.from_numpy(pixels)).numpy()
        return found

    return run
