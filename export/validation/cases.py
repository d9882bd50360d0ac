"""The single comparisons of a bundle with PyTorch: which graphs run, on what, against what."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from prtool.bundle import Bundle
from prtool.engines.base import Array
from prtool.errors import ParityError
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.probe import prompts
from prtool.export.validation.reference import Reference, Route, Selection, overlap, patch_tokens, unpruned
from prtool.runtime.encoder import Encoder
from prtool.runtime.patch_tokens import common_tokens
from prtool.runtime.pipeline import Graphs
from prtool.runtime.verify import QUIET, agreement, gate_of
from prtool.spec import RANK, Keep
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.pruned import PlainEncoder, PrunedEncoder, select

# Every user has ONNX Runtime, but its CPU kernels are poor in fp16 and missing in bf16.
ENGINES: Mapping[str, str] = MappingProxyType({"fp32": "ort", "fp16": "torch", "bf16": "torch", "int8": "ort"})
"""What runs each precision's graphs for the comparison."""


@dataclass(frozen=True, slots=True)
class ParityCase:
    """One comparison with PyTorch.

    Attributes:
        graph: "fused", "split", "full", "tokens", "text", or "mid_1", ..., "post" (on PyTorch's own tokens).
        batch: images, or prompts, in the call.
        k: patches kept behind the last location; 0 for text.
        cosine: the worst of the batch; of a "mid", and of "tokens", all tokens of an image are one vector.
        max_error: largest difference of any value of an embedding, or of such a vector at length 1.
        score_error: largest difference of a score, at any location.
        index_agreement: share of kept patches that PyTorch keeps too; below 1 only where scores tie within rounding. 1 where patches are
            not ranked.
    """

    graph: str
    batch: int
    k: int
    cosine: float
    max_error: float
    score_error: float = 0.0
    index_agreement: float = 1.0


class Sessions(contextlib.ExitStack):
    """Every way to run a bundle, as users do, closed together."""

    def __init__(self, bundle: Bundle, precision: str) -> None:
        super().__init__()
        self.precision = precision
        self._bundle, self._engine = bundle, ENGINES[precision]

    def __enter__(self) -> Self:
        self.fused, self.full = map(self._load, ("fused", "full"))
        return self

    @functools.cached_property
    def split(self) -> Encoder:
        """The graphs with selection between them, of a bundle that ranks patches."""
        return self._load("split")

    @functools.cached_property
    def graphs(self) -> Graphs:
        """Each graph alone."""
        return self.enter_context(contextlib.closing(Graphs(self._bundle, self._engine, self.precision, QUIET)))

    def _load(self, mode: str) -> Encoder:
        return self.enter_context(Encoder.load(self._bundle, engine=self._engine, mode=mode, precision=self.precision, options=QUIET))


def num_image_cases(source: ExportSource, counts: Sequence[int]) -> int:
    """How many cases `image_cases` gives."""
    routes = 2 + len(source.spec.locations) if source.spec.method == RANK else 1
    return (routes + bool(source.tokens_block)) * len(counts) + 1


def image_cases(source: ExportSource, sessions: Sessions, pixels: Pixels, counts: Sequence[int]) -> Iterator[ParityCase]:
    """Every comparison of one batch of images: FUSED at each keep count, the stages where patches are ranked, and FULL."""
    encoder = source.pruned
    if isinstance(encoder, PrunedEncoder):
        yield from _ranking_cases(encoder, sessions, pixels.own, counts)
    else:
        yield from _fused_cases(encoder, sessions, pixels.own, counts)
    if source.tokens_block:
        yield from _tokens_cases(source, sessions, pixels.own, counts)
    native = source.model.native
    near = agreement(sessions.full.encode_pixels(pixels.full.numpy()), unpruned(native, pixels.full).numpy())
    yield ParityCase("full", len(pixels), native.patches, near.cosine, near.max_error)


@torch.no_grad()
def _fused_cases(encoder: MergedEncoder | PlainEncoder, sessions: Sessions, pixels: Tensor, counts: Sequence[int]) -> Iterator[ParityCase]:
    """FUSED alone: what merges with what stays inside it, so near ties are avoided by the choice of images (`Probe.choose`)."""
    for k in counts:
        found = sessions.fused.encode_pixels(pixels.numpy(), Keep.count(k))
        near = agreement(found, encoder.encode(pixels, encoder.spec.counts(k)).numpy())
        yield ParityCase("fused", len(pixels), k, near.cosine, near.max_error)


def _ranking_cases(encoder: PrunedEncoder, sessions: Sessions, pixels: Tensor, counts: Sequence[int]) -> Iterator[ParityCase]:
    reference, array = Reference(encoder, pixels), pixels.numpy()
    for k in counts:
        keep = Keep.count(k)
        kept = encoder.spec.counts(keep)
        own, found = reference.route(kept), _selections(sessions.split, array, keep)
        _check_scores(found[0][0].numpy(), reference.scores.numpy(), sessions.precision, "pre")
        followed = reference.route(kept, found)
        shared = float(overlap(_left(found), own.patches).mean())
        for graph, session in (("fused", sessions.fused), ("split", sessions.split)):
            near = agreement(session.encode_pixels(array, keep), followed.embedding.numpy())
            yield ParityCase(graph, len(pixels), k, near.cosine, near.max_error, max(followed.score_errors), shared)
        for place in range(1, len(own.kept)):
            yield _mid_case(sessions, own, place)
        near = agreement(sessions.graphs.run("post", {"tokens": own.kept[-1].numpy()})["embedding"], own.embedding.numpy())
        yield ParityCase("post", len(pixels), k, near.cosine, near.max_error)


@torch.no_grad()
def _tokens_cases(source: ExportSource, sessions: Sessions, pixels: Tensor, counts: Sequence[int]) -> Iterator[ParityCase]:
    array, patches = pixels.numpy(), source.spec.patches
    for k in counts:
        found = sessions.fused.encode_tokens(array, Keep.count(k))
        follow = _selections(sessions.split, array, Keep.count(k)) if source.spec.method == RANK else ()
        wanted = patch_tokens(source, pixels, k, follow)
        near = agreement(*common_tokens(found, wanted, patches))
        shared = overlap(torch.from_numpy(found.indices), torch.from_numpy(wanted.indices))
        yield ParityCase("tokens", len(pixels), k, near.cosine, near.max_error, index_agreement=float(shared.mean()))


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


def _mid_case(sessions: Sessions, own: Route, place: int) -> ParityCase:
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


def text_case(source: ExportSource, sessions: Sessions) -> ParityCase:
    """The text encoder on two prompts."""
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
