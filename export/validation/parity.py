"""The proof that ends every export: the bundle's graphs against PyTorch, through the engine that users run."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

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
from prtool.export.validation.reference import Choice, Path, Reference, overlap
from prtool.progress import Progress, SilentProgress, stage
from prtool.runtime.encoder import Encoder
from prtool.runtime.pipeline import Graphs
from prtool.runtime.verify import QUIET, agreement, gate_of
from prtool.spec import Keep
from prtool.trainer.models.pruned import select

# What runs each precision's graphs for the proof: every user has ONNX Runtime, but on a CPU it computes neither fp16 well nor bf16 at all.
ENGINES: Mapping[str, str] = MappingProxyType({"fp32": "ort", "fp16": "torch", "bf16": "torch", "int8": "ort"})


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
        gate: the cosine that every case passed.
        cases: every comparison.
        agreement: over real images, one row a keep count; none for fp32, and where there were no images.
        judged: what `agreement` was held to besides the mean cosine, and why; None where there is none.
    """

    precision: str
    engine: str
    gate: float
    cases: tuple[ParityCase, ...]
    agreement: tuple[KeepAgreement, ...] = ()
    judged: Decisions | None = None

    def summary(self) -> dict[str, float]:
        """The worst figures."""
        worst = {
            "cosine": min(case.cosine for case in self.cases),
            "max_error": max(case.max_error for case in self.cases),
            "score_error": max(case.score_error for case in self.cases),
            "index_agreement": min(case.index_agreement for case in self.cases),
        }
        if self.agreement and self.judged is not None:
            worst["mean_cosine"] = min(row.cosine_mean for row in self.agreement)
            for name in (TOP1, NEIGHBOURS):
                shares = [share for row in self.agreement if (share := getattr(row, name)) is not None]
                worst |= {name: min(shares)} if shares else {}
            decided = self.judged.decided_by
            worst[f"gate.{decided}"] = getattr(gate_of(self.precision), decided)
        return worst


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Every comparison, by precision, what the images were ("given" or "noise"), and how many given ones the probe has (0 for noise)."""

    images: str
    precisions: tuple[PrecisionParity, ...]
    probe_images: int = 0

    def summary(self) -> dict[str, float]:
        """The worst figures, for the manifest; those of a reduced precision carry its name. `images` is how many real ones the probe has."""
        return {"images": float(self.probe_images)} | {
            key if part.precision == "fp32" else f"{part.precision}.{key}": value for part in self.precisions for key, value in part.summary().items()
        }

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Real images on which reduced precisions are compared too: (images, 3, height, width) float32, and the unpruned model on them."""

    pixels: Tensor
    unpruned: Unpruned


def prove(source: ExportSource, bundle: Bundle, probe: Probe, held_out: HeldOut | None = None, progress: Progress | None = None) -> ParityReport:
    """Runs every graph of every precision, alone and together, and compares each with PyTorch in float32.

    Args:
        source: the reference.
        bundle: the graphs, opened.
        probe: images and keep counts.
        held_out: for the reduced precisions; None leaves that out.
        progress: advanced once for each comparison.

    Raises:
        ParityError: a comparison failed; the message names it.
    """
    told = progress or SilentProgress()
    parts = [_prove(source, bundle, probe, precision, told) for precision in bundle.manifest.graphs]
    if held_out is not None:
        parts = [part if part.precision == "fp32" else _agree(source, bundle, probe, held_out, part) for part in parts]
    return ParityReport(probe.images, tuple(parts), len(probe.pixels) if probe.images == GIVEN else 0)


def _prove(source: ExportSource, bundle: Bundle, probe: Probe, precision: str, told: Progress) -> PrecisionParity:
    gate = gate_of(precision)
    cases: list[ParityCase] = []
    batches = sorted({1, len(probe.pixels)})
    texts = int(precision == "fp32")
    steps = len(batches) * ((2 + len(source.spec.locations)) * len(probe.counts) + 1) + texts
    with stage(told, f"comparing {precision} with PyTorch, cases", steps), _Bench(bundle, precision) as bench:
        for batch in batches:
            for case in _image_cases(source, bench, probe.pixels[:batch], probe.counts):
                cases.append(_gated(case, gate.worst_cosine))
                told.advance()
        if texts:
            cases.append(_gated(_text_case(source, bench), gate.worst_cosine))
            told.advance()
        return PrecisionParity(precision, f"{bench.fused.info.name} {bench.fused.info.version}", gate.worst_cosine, tuple(cases))


def _agree(source: ExportSource, bundle: Bundle, probe: Probe, held_out: HeldOut, part: PrecisionParity) -> PrecisionParity:
    ask = VerifyRequest(ENGINES[part.precision], part.precision)
    rows = verify_with_model(bundle, source, held_out.pixels, probe.counts, ask)
    judged = held_out.unpruned.judged(gate_of(part.precision))
    check_agreement(rows, ask, judged)
    return dataclasses.replace(part, agreement=rows, judged=judged)


class _Bench:
    """Every way to run a bundle, as users do, closed together."""

    def __init__(self, bundle: Bundle, precision: str) -> None:
        engine = ENGINES[precision]
        self.precision = precision
        self.fused = Encoder.load(bundle, engine=engine, mode="fused", precision=precision, options=QUIET)
        self.split = Encoder.load(bundle, engine=engine, mode="split", precision=precision, options=QUIET)
        self.full = Encoder.load(bundle, engine=engine, mode="full", precision=precision, options=QUIET)
        self.graphs = Graphs(bundle, engine, precision, QUIET)

    def __enter__(self) -> "_Bench":
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self.fused, self.split, self.full, self.graphs):
            part.close()


def _image_cases(source: ExportSource, bench: _Bench, pixels: Tensor, counts: Sequence[int]) -> Iterator[ParityCase]:
    reference = Reference.of(source.pruned, pixels)
    array = pixels.numpy()
    for k in counts:
        keep = Keep.count(k)
        own, choices = reference.path(source.spec.counts(keep)), _choices(bench.split, array, keep)
        _check_scores(choices[0].scores.numpy(), reference.scores.numpy(), bench.precision, "pre")
        followed = reference.follow(choices)
        wanted, shared = followed.embedding.numpy(), overlap(_survivors(choices), own.patches)
        for graph, encoder in (("fused", bench.fused), ("split", bench.split)):
            near = agreement(encoder.encode_pixels(array, keep), wanted)
            yield ParityCase(graph, len(pixels), k, near.cosine, near.max_error, max(followed.score_errors), shared)
        for place in range(1, len(own.kept)):
            yield _mid_case(bench, own, place)
        near = agreement(bench.graphs.run("post", {"tokens": own.kept[-1].numpy()})["embedding"], own.embedding.numpy())
        yield ParityCase("post", len(pixels), k, near.cosine, near.max_error)
    near = agreement(bench.full.encode_pixels(array), reference.full().numpy())
    yield ParityCase("full", len(pixels), source.spec.patches, near.cosine, near.max_error)


def _choices(split: Encoder, pixels: Array, keep: Keep) -> list[Choice]:
    """What the split graphs choose at each location; POST does not run."""
    choices: list[Choice] = []
    scores: Array | None = None
    for step in split.stages(pixels, keep):
        if "indices" in step.tensors and scores is not None:
            choices.append(Choice(torch.from_numpy(scores), torch.from_numpy(step.tensors["indices"])))
            if len(choices) == len(split.manifest.prune.locations):
                break
        else:
            scores = step.tensors["scores"]
    return choices


def _survivors(choices: Sequence[Choice]) -> Tensor:
    """The patches (batch, k) that are left behind the last location."""
    patches = choices[0].indices
    for choice in choices[1:]:
        patches = patches.gather(1, choice.indices)
    return patches


def _mid_case(bench: _Bench, own: Path, place: int) -> ParityCase:
    """One middle graph on PyTorch's tokens."""
    role, wanted = f"mid_{place}", own.entering[place].flatten(1)
    found = bench.graphs.run(role, {"tokens": own.kept[place - 1].numpy()})
    scores, own_scores = found["scores"], own.scores[place].numpy()
    error = _check_scores(scores, own_scores, bench.precision, role)
    lengths = wanted.norm(dim=1, keepdim=True).numpy()
    near = agreement(found["tokens_out"].reshape(len(wanted), -1) / lengths, wanted.numpy() / lengths)
    k = own.kept[place].shape[1] - bench.fused.manifest.prune.always_kept
    shared = overlap(select(torch.from_numpy(scores), k), select(own.scores[place], k))
    return ParityCase(role, len(wanted), own.patches.shape[1], near.cosine, near.max_error, error, shared)


def _text_case(source: ExportSource, bench: _Bench) -> ParityCase:
    tokens = prompts(source)
    with torch.no_grad():
        wanted = source.model.text(tokens)
    near = agreement(bench.fused.encode_text(tokens.numpy()), wanted.numpy())
    return ParityCase("text", len(tokens), 0, near.cosine, near.max_error)


def _check_scores(found: Array, wanted: Array, precision: str, role: str) -> float:
    """Largest difference of a score; raises ParityError where it is more than rounding."""
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
