"""The few images that a bundle is compared on: chosen so that rounding does not decide which patches they keep."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prtool.errors import ShapeError
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.reference import patch_tokens, unpruned
from prtool.runtime.verify import PATCH_INDICES, PATCH_TOKENS
from prtool.spec import Keep
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.pruned import FirstOrder, PrunedEncoder
from prtool.trainer.models.reduced import ReducedEncoder

PROBE_IMAGES = 3
# Each costs one run of the blocks before the first location, and for each count one of the blocks up to the last location.
CANDIDATES = 16
_TINY = 1e-12
GIVEN, NOISE = "given", "noise"
"""What a probe's images are."""
_PROMPTS = ("a photo of a cat.", "two dogs, and a bicycle")


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """The images and keep counts of a comparison.

    Attributes:
        pixels: prepared images.
        counts: three keep counts, every patch among them; that one alone where nothing is dropped.
        images: "given", or "noise" where none were.
        default: the one of `counts` that the bundle keeps by default.
    """

    pixels: Pixels
    counts: tuple[int, ...]
    images: str
    default: int

    @classmethod
    def choose(cls, source: ExportSource, pixels: Pixels | None, default_keep: int) -> "Probe":
        """Takes the images whose scores, or similarities, are farthest apart where they decide, at every count.

        Args:
            source: the pruned encoder.
            pixels: prepared as the model's preprocessing says; None takes seeded noise.
            default_keep: patches that the bundle keeps by default.

        Raises:
            ShapeError: `pixels` have another shape or dtype, or hold no image.
        """
        candidates = _noise(source) if pixels is None else pixels[:CANDIDATES]
        for given, tower in ((candidates.own, source.pruned.tower), (candidates.full, source.model.native)):
            size = (3, *tower.image_size)
            if given.dtype != torch.float32 or tuple(given.shape[1:]) != size or len(given) == 0:
                raise ShapeError(f"pixels have shape {tuple(given.shape)} and dtype {given.dtype}, but the model takes (images, *{size}) of float32")
        counts = keep_counts(default_keep, source.keep_range)
        clearest = _clearness(source.pruned, candidates.own, counts).argsort(descending=True, stable=True)[:PROBE_IMAGES]
        return cls(candidates[clearest], counts, NOISE if pixels is None else GIVEN, default_keep)

    def tensors(self, source: ExportSource) -> dict[str, Tensor]:
        """What `prtool.runtime.verify` reads: pixels and prompts, and PyTorch's embeddings of them."""
        own, full, spec, others = self.pixels.own, self.pixels.full, source.spec, dict[str, Tensor]()
        with torch.no_grad():
            if source.model.has_text:
                tokens = prompts(source)
                others = {"text_tokens": tokens, "text_embedding": source.model.text(tokens)}
            if source.tokens_block:
                given = patch_tokens(source, own, self.default)
                others |= {PATCH_TOKENS: torch.from_numpy(given.tokens), PATCH_INDICES: torch.from_numpy(given.indices)}
            reduced = {f"embedding_k{k}": source.pruned.encode(own, spec.counts(k)) for k in self.counts}
        tensors = {"pixels": own, "embedding_full": unpruned(source.model.native, full)} | others
        larger = {"pixels_full": full} if full.shape != own.shape else {}
        return {name: tensor.contiguous() for name, tensor in (tensors | larger | reduced).items()}


def keep_counts(default: int, keep_range: tuple[int, int]) -> tuple[int, ...]:
    """Three different keep counts: the greatest of a range, the default, and about a quarter of that, or the least.

    The greatest alone where the range has no other.

    Raises:
        ShapeError: there are fewer than three counts to choose from.
    """
    least, most = keep_range
    if least == most:
        return (most,)
    others = (max(least, most // 4), max(least, most // 2), least, least + 1)
    chosen = tuple(dict.fromkeys((most, default, *others)))[:3]
    if most - least < 2 or len(chosen) < 3:
        raise ShapeError(
            f"the encoder can keep {least} to {most} patches, but pruning needs three different counts; "
            "use a larger image or smaller patches, or a recovery for a wider range"
        )
    return chosen


def _noise(source: ExportSource) -> Pixels:
    """Seeded noise; what the reduced encoder reads are some of the pixels of the unpruned one's."""
    size, native = source.pruned.tower.image_size, source.model.native.image_size
    full = torch.randn(CANDIDATES, 3, *native, generator=torch.Generator().manual_seed(0))
    return Pixels(full) if size == native else Pixels(functional.interpolate(full, size, mode="nearest"), full)


@torch.no_grad()
def _clearness(encoder: ReducedEncoder, images: Tensor, counts: Sequence[int]) -> Tensor:
    """How far each image is from a near tie, (images,): the smallest difference that decides which patches go."""
    if isinstance(encoder, MergedEncoder):
        return torch.cat([matching_margin(encoder, image[None], counts) for image in images])
    if not isinstance(encoder, PrunedEncoder):
        return torch.zeros(len(images))
    gaps, largest = torch.stack([_gaps(encoder, image[None], counts) for image in images]).unbind(dim=1)
    # Each location has scores of its own size.
    return (gaps / largest.amax(dim=0).clamp_min(_TINY)).amin(dim=1)


def matching_margin(encoder: MergedEncoder, pixels: Tensor, counts: Sequence[int]) -> Tensor:
    """The smallest difference of two cosines that decides what merges, at any location and keep count.

    Args:
        encoder: merges the tokens of
        pixels: (batch, 3, height, width).
        counts: keep counts at the last location.

    Returns:
        (batch,): infinite where nothing merges.
    """
    entered, margins = encoder.run_pre(pixels), [torch.full((len(pixels),), torch.inf)]
    for keep in counts:
        (tokens, metric), sizes, left = entered, None, encoder.spec.patches
        for place, k in enumerate(encoder.spec.counts(keep), start=1):
            margins.append(encoder.margin(metric, left - k))
            tokens, sizes = encoder.merge(tokens, metric, sizes, k)
            left = k
            if place < len(encoder.spec.locations):
                tokens, metric = encoder.run_mid(place, tokens, sizes)
    return torch.stack(margins).amin(dim=0)


@torch.no_grad()
def _gaps(encoder: PrunedEncoder, pixels: Tensor, counts: Sequence[int]) -> Tensor:
    """At each cut of one image: score difference of the last kept and the first dropped patch, and the largest score; (2, cuts)."""
    cuts: list[tuple[float, float]] = []
    entered = encoder.run_pre(pixels)
    for keep in counts:
        (tokens, scores), deciding = entered, entered[1]
        for place, k in enumerate(encoder.spec.counts(Keep.count(keep)), start=1):
            ranked = deciding.sort(dim=1, descending=True).values
            if k < ranked.shape[1]:
                cuts.append((float(ranked[0, k - 1] - ranked[0, k]), float(ranked.abs().max())))
            tokens = encoder.drop(tokens, scores, k)
            if place < len(encoder.spec.locations):
                tokens, scores = encoder.run_mid(place, tokens)
                # A location that keeps the order of the first cuts in the scores of the first.
                deciding = ranked[:, :k] if isinstance(encoder.scorers[place], FirstOrder) else scores
    return torch.tensor(cuts).T


def prompts(source: ExportSource) -> Tensor:
    """Token ids (prompts, context) int64 of two fixed prompts."""
    return source.model.tokenizer(_PROMPTS).to(torch.int64)
