"""The comparison that ends every export: the bundle's graphs against PyTorch, on the engine that users run."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from prtool.bundle import Bundle
from prtool.engines.base import Array
from prtool.errors import ParityError
from prtool.export.source import ExportSource
from prtool.export.validation.agreement import KeepAgreement, VerifyRequest, check_agreement, verify_with_model
from prtool.export.validation.decisions import NEIGHBOURS, TOP1, Decisions, Unpruned
from prtool.export.validation.probe import GIVEN, Probe, prompts
from prtool.export.validation.reference import Reference, Route, Selection, overlap, unpruned
from prtool.progress import Progress, SilentProgress, stage
from prtool.runtime.encoder import Encoder
from prtool.runtime.pipeline import Graphs
from prtool.runtime.verify import QUIET, agreement, gate_of
from prtool.spec import Keep
from prtool.trainer.models.pruned import select

# Every user has ONNX Runtime, but its CPU kernels are poor in fp16 and missing in bf16.
ENGINES: Mapping[str, str] = MappingProxyType({"fp32": "ort", "fp16": "torch", "bf16": "torch", "int8": "ort"})
"""What runs each precision's graphs for the comparison."""


@dataclass(frozen=True, slots=True)
class ParityCase:
    """One comparison with PyTorch.

    Attributes:
        graph: "fused", "split", "full", "text", or "mid_1", ..., "post" (on PyTorch's own tokens).
        batch: images, or prompts, in the call.
        k: patches kept behind the last location; 0 for text.
        cosine: the worst of the batch; of a "mid" all tokens of an image are one vector.
        max_error: largest difference of any value of an embedding, or of a "mid"'s vector at length 1.
        score_error: largest difference of a score, at any location.
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
class PrecisionParity:
    """The comparisons of one precision.

    Attributes:
        precision: of the graphs.
        engine: what ran them, with its version.
        gate: the worst cosine had to be above this.
        cases: every comparison on the probe.
        agreement: one row a keep count over the held-out images; () for fp32, and where there were no images.
        judged: what `agreement` had to reach in addition to the mean cosine, and why; None where there is none.
    """

    precision: str
    engine: str
    gate: float
    cases: tuple[ParityCase, ...]
    agreement: tuple[KeepAgreement, ...] = ()
    judged: Decisions | None = None

    def summary(self) -> dict[str, float]:
        """The worst figures; those of a reduced precision carry its name."""
        worst = {name: pick(getattr(case, name) for case in self.cases) for name, pick in _WORST.items()}
        if self.agreement and self.judged is not None:
            worst["mean_cosine"] = min(row.cosine_mean for row in self.agreement)
            for name in (TOP1, NEIGHBOURS):
                shares = [share for row in self.agreement if (share := getattr(row, name)) is not None]
                worst |= {name: min(shares)} if shares else {}
            worst[f"gate.{self.judged.decided_by}"] = getattr(gate_of(self.precision), self.judged.decided_by)
        return worst if self.precision == "fp32" else {f"{self.precision}.{name}": value for name, value in worst.items()}


_WORST = {"cosine": min, "max_error": max, "score_error": max, "index_agreement": min}


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Every comparison, by precision, what the images were ("given" or "noise"), and how many given ones the probe has (0 for noise)."""

    images: str
    precisions: tuple[PrecisionParity, ...]
    probe_images: int = 0

    def summary(self) -> dict[str, float]:
        """The worst figures, for the manifest; `images` is how many real ones the probe has."""
        return {"images": float(self.probe_images), **{name: value for part in self.precisions for name, value in part.summary().items()}}

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


def compare(
    source: ExportSource, bundle: Bundle, probe: Probe, held_out: Tensor | None = None, labels: Sequence[int] = (), progress: Progress | None = None
) -> ParityReport:
    """Runs every graph of every precision, alone and together, and compares each with PyTorch in float32.

    Args:
        source: the reference.
        bundle: an opened bundle.
        probe: images and keep counts.
        held_out: real images (images, 3, height, width) float32 on which reduced precisions are compared too; None for none.
        labels: the class of each of these, or -1; () for none known.
        progress: advanced once for each comparison.

    Raises:
        ParityError: a comparison failed; the message names it.
    """
    parts = [_compare(source, bundle, probe, precision, progress or SilentProgress()) for precision in bundle.manifest.graphs]
    if held_out is not None and len(parts) > 1:
        unpruned_model = Unpruned.of(source, held_out, labels)
        for place, part in enumerate(parts):
            if part.precision != "fp32":
                ask = VerifyRequest(ENGINES[part.precision], part.precision)
                rows = verify_with_model(bundle, source, held_out, probe.counts, ask, labels)
                judged = unpruned_model.judged(gate_of(part.precision))
                check_agreement(rows, ask, judged)
                parts[place] = dataclasses.replace(part, agreement=rows, judged=judged)
    return ParityReport(probe.images, tuple(parts), len(probe.pixels) if probe.images == GIVEN else 0)


def _compare(source: ExportSource, bundle: Bundle, probe: Probe, precision: str, progress: Progress) -> PrecisionParity:
    gate = gate_of(precision).worst_cosine
    cases: list[ParityCase] = []
    batches = sorted({1, len(probe.pixels)})
    texts = int(precision == "fp32")
    steps = len(batches) * ((2 + len(source.spec.locations)) * len(probe.counts) + 1) + texts
    with stage(progress, f"comparing {precision} with PyTorch, cases", steps), _Sessions(bundle, precision) as sessions:
        for batch in batches:
            for case in _image_cases(source, sessions, probe.pixels[:batch], probe.counts):
                cases.append(_gated(case, gate))
                progress.advance()
        if texts:
            cases.append(_gated(_text_case(source, sessions), gate))
            progress.advance()
        return PrecisionParity(precision, f"{sessions.fused.info.name} {sessions.fused.info.version}", gate, tuple(cases))


class _Sessions(contextlib.ExitStack):
    """Every way to run a bundle, as users do, closed together."""

    def __init__(self, bundle: Bundle, precision: str) -> None:
        super().__init__()
        self.precision = precision
        self._bundle, self._engine = bundle, ENGINES[precision]

    def __enter__(self) -> Self:
        self.fused, self.split, self.full = map(self._load, ("fused", "split", "full"))
        self.graphs = self.enter_context(contextlib.closing(Graphs(self._bundle, self._engine, self.precision, QUIET)))
        return self

    def _load(self, mode: str) -> Encoder:
        return self.enter_context(Encoder.load(self._bundle, engine=self._engine, mode=mode, precision=self.precision, options=QUIET))


def _image_cases(source: ExportSource, sessions: _Sessions, pixels: Tensor, counts: Sequence[int]) -> Iterator[ParityCase]:
    reference, array = Reference(source.pruned, pixels), pixels.numpy()
    for k in counts:
        keep = Keep.count(k)
        kept = source.spec.counts(keep)
        own, found = reference.route(kept), _selections(sessions.split, array, keep)
        _check_scores(found[0][0].numpy(), reference.scores.numpy(), sessions.precision, "pre")
        followed = reference.route(kept, found)
        shared = float(overlap(_left(found), own.patches).mean())
        for graph, encoder in (("fused", sessions.fused), ("split", sessions.split)):
            near = agreement(encoder.encode_pixels(array, keep), followed.embedding.numpy())
            yield ParityCase(graph, len(pixels), k, near.cosine, near.max_error, max(followed.score_errors), shared)
        for place in range(1, len(own.kept)):
            yield _mid_case(sessions, own, place)
        near = agreement(sessions.graphs.run("post", {"tokens": own.kept[-1].numpy()})["embedding"], own.embedding.numpy())
        yield ParityCase("post", len(pixels), k, near.cosine, near.max_error)
    near = agreement(sessions.full.encode_pixels(array), unpruned(source.pruned, pixels).numpy())
    yield ParityCase("full", len(pixels), source.spec.patches, near.cosine, near.max_error)


def _selections(split: Encoder, pixels: Array, keep: Keep) -> list[Selection]:
    """What the split graphs select at each location; POST does not run."""
    found: list[Selection] = []
    scores: Array | None = None
    for step in split.stages(pixels, keep):
        if "indices" in step.tensors and scores is not None:
            found.append((torch.from_numpy(scores), torch.from_numpy(step.tensors["indices"])))
            if len(found) == len(split.manifest.prune.locations):
                break
        else:
            scores = step.tensors["scores"]
    return found


def _left(found: Sequence[Selection]) -> Tensor:
    """The patches (batch, k) that are left behind the last location."""
    patches = found[0][1]
    for _, indices in found[1:]:
        patches = patches.gather(1, indices)
    return patches


def _mid_case(sessions: _Sessions, own: Route, place: int) -> ParityCase:
    """One middle graph on PyTorch's tokens."""
    role, wanted = f"mid_{place}", own.entering[place].flatten(1)
    found = sessions.graphs.run(role, {"tokens": own.kept[place - 1].numpy()})
    scores, own_scores = found["scores"], own.scores[place].numpy()
    error = _check_scores(scores, own_scores, sessions.precision, role)
    lengths = wanted.norm(dim=1, keepdim=True).numpy()
    near = agreement(found["tokens_out"].reshape(len(wanted), -1) / lengths, wanted.numpy() / lengths)
    k = own.kept[place].shape[1] - sessions.fused.manifest.prune.always_kept
    shared = overlap(select(torch.from_numpy(scores), k), select(own.scores[place], k))
    return ParityCase(role, len(wanted), own.patches.shape[1], near.cosine, near.max_error, error, float(shared.mean()))


def _text_case(source: ExportSource, sessions: _Sessions) -> ParityCase:
    tokens = prompts(source)
    with torch.no_grad():
        wanted = source.model.text(tokens)
    near = agreement(sessions.fused.encode_text(tokens.numpy()), wanted.numpy())
    return ParityCase("text", len(tokens), 0, near.cosine, near.max_error)


def _check_scores(found: Array, wanted: Array, precision: str, role: str) -> float:
    """Largest difference of a score; raises ParityError where it exceeds rounding."""
    error, largest = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
    if not error <= gate_of(precision).score_error * max(largest, 1e-6):
        raise ParityError(
            f"the scores of {role}.onnx in {precision} differ from PyTorch's by {error:.3g}, with scores up to {largest:.3g}; "
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
