"""The proof that ends every export: the bundle's graphs against PyTorch, through the engine that users run."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prtool.bundle import Bundle
from prtool.engines.base import Array
from prtool.errors import ParityError
from prtool.export.probe import Probe, prompts
from prtool.export.reference import Reference, overlap
from prtool.export.source import ExportSource
from prtool.progress import Progress, SilentProgress, stage
from prtool.runtime.encoder import Encoder
from prtool.runtime.pipeline import Graphs
from prtool.runtime.verify import QUIET, agreement, gate_of
from prtool.spec import Keep

ENGINE = "ort"
# A score may differ by this share of the largest score: rounding stays below 1e-5.
_SCORE_GATE = 1e-4


@dataclass(frozen=True, slots=True)
class ParityCase:
    """One comparison with PyTorch.

    Attributes:
        graph: "fused", "split", "full", "text", or "post" (on PyTorch's own tokens).
        batch: images, or prompts, in the call.
        k: patches kept; 0 for text.
        cosine: the worst of the batch.
        max_error: largest difference of any value of an embedding.
        score_error: largest difference of a score.
        index_agreement: share of kept patches that PyTorch keeps too; below 1 only where scores tie within rounding.
    """

    graph: str
    batch: int
    k: int
    cosine: float
    max_error: float
    score_error: float = 0.0
    index_agreement: float = 1.0


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Every comparison, the gate that each passed, and what the images were ("given" or "noise")."""

    gate: float
    images: str
    engine: str
    cases: tuple[ParityCase, ...]

    def summary(self) -> dict[str, float]:
        """The worst figures, for the manifest."""
        return {
            "cosine": min(case.cosine for case in self.cases),
            "max_error": max(case.max_error for case in self.cases),
            "score_error": max(case.score_error for case in self.cases),
            "index_agreement": min(case.index_agreement for case in self.cases),
        }

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


def prove(source: ExportSource, bundle: Bundle, probe: Probe, progress: Progress | None = None) -> ParityReport:
    """Runs fused, split, full and text graphs and compares each with PyTorch.

    Args:
        source: the reference.
        bundle: the graphs, opened.
        probe: images and keep counts.
        progress: hears one step for each comparison.

    Raises:
        ParityError: a comparison failed; the message names it.
    """
    gate = gate_of("fp32")
    told = progress or SilentProgress()
    cases: list[ParityCase] = []
    batches = sorted({1, len(probe.pixels)})
    with stage(told, "comparing with PyTorch, cases", len(batches) * (3 * len(probe.counts) + 1) + 1), _Bench(bundle) as bench:
        for batch in batches:
            for case in _image_cases(source, bench, probe.pixels[:batch], probe.counts):
                cases.append(_gated(case, gate))
                told.advance()
        cases.append(_gated(_text_case(source, bench), gate))
        told.advance()
    return ParityReport(gate, probe.images, f"{bench.fused.info.name} {bench.fused.info.version}", tuple(cases))


class _Bench:
    """Every way to run a bundle, as users do, closed together."""

    def __init__(self, bundle: Bundle) -> None:
        self.fused = Encoder.load(bundle, engine=ENGINE, mode="fused", options=QUIET)
        self.split = Encoder.load(bundle, engine=ENGINE, mode="split", options=QUIET)
        self.full = Encoder.load(bundle, engine=ENGINE, mode="full", options=QUIET)
        self.graphs = Graphs(bundle, ENGINE, "fp32", QUIET)

    def __enter__(self) -> "_Bench":
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self.fused, self.split, self.full, self.graphs):
            part.close()


def _image_cases(source: ExportSource, bench: _Bench, pixels: Tensor, counts: Sequence[int]) -> Iterator[ParityCase]:
    reference = Reference.of(source.pruned, pixels)
    array = pixels.numpy()
    score_error = _score_error(bench.split.scores(array), reference.scores.numpy())
    for k in counts:
        keep = Keep.count(k)
        found = torch.from_numpy(bench.split.kept(array, keep))
        shared = overlap(found, reference.indices(k))
        wanted = reference.embedding(reference.accepted(found, score_error)).numpy()
        for graph, encoder in (("fused", bench.fused), ("split", bench.split)):
            near = agreement(encoder.encode_pixels(array, keep), wanted)
            yield ParityCase(graph, len(pixels), k, near.cosine, near.max_error, score_error, shared)
        tokens = reference.kept(reference.indices(k))
        near = agreement(bench.graphs.run("post", {"tokens": tokens.numpy()})["embedding"], reference.encoder.leave(tokens).detach().numpy())
        yield ParityCase("post", len(pixels), k, near.cosine, near.max_error)
    near = agreement(bench.full.encode_pixels(array), reference.full.numpy())
    yield ParityCase("full", len(pixels), source.spec.patches, near.cosine, near.max_error)


def _text_case(source: ExportSource, bench: _Bench) -> ParityCase:
    tokens = prompts(source)
    with torch.no_grad():
        wanted = source.model.text(tokens)
    near = agreement(bench.fused.encode_text(tokens.numpy()), wanted.numpy())
    return ParityCase("text", len(tokens), 0, near.cosine, near.max_error)


def _score_error(found: Array, wanted: Array) -> float:
    """Largest difference of a score; raises ParityError where it is more than rounding."""
    error, largest = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
    if not error <= _SCORE_GATE * max(largest, 1e-6):
        raise ParityError(
            f"the scores of pre.onnx differ from PyTorch's by {error:.3g}, with scores up to {largest:.3g}; "
            "nothing was written; use another model, or report this one's name"
        )
    return error


def _gated(case: ParityCase, gate: float) -> ParityCase:
    if case.cosine > gate:
        return case
    place = f"{case.graph} at batch {case.batch}" + (f" and k = {case.k}" if case.k else "")
    raise ParityError(
        f"{place} has cosine {case.cosine:.7f} with PyTorch, but it must be above {gate} (largest error {case.max_error:.3g}, "
        f"{case.index_agreement:.1%} of patches agree); nothing was written; use another model, or report this one's name"
    )
