"""The few images that prove a bundle: chosen so that rounding cannot decide which patches they keep."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prtool.errors import ShapeError
from prtool.export.source import ExportSource
from prtool.export.validation.reference import Reference
from prtool.spec import Keep
from prtool.trainer.models.pruned import FirstOrder, PrunedEncoder

PROBE_IMAGES = 3
# Enough to find three clear ones among; each costs one run of the blocks before the first location, and one a count of those to the last.
CANDIDATES = 16
_TINY = 1e-12
GIVEN, NOISE = "given", "noise"
"""What a probe's images are."""
_PROMPTS = ("a photo of a cat.", "two dogs, and a bicycle")


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """The images and keep counts of a comparison.

    Attributes:
        pixels: (images, 3, height, width) float32, prepared.
        counts: three keep counts, every patch among them.
        images: "given", or "noise" where none were.
    """

    pixels: Tensor
    counts: tuple[int, int, int]
    images: str

    @classmethod
    def choose(cls, source: ExportSource, pixels: Tensor | None, default_keep: int) -> "Probe":
        """Takes the images whose scores are clearest apart at every count.

        Args:
            source: the pruned encoder.
            pixels: (images, 3, height, width) float32, prepared as the model's preprocessing says; None takes seeded noise.
            default_keep: patches that the bundle keeps by default.

        Raises:
            ShapeError: `pixels` have another shape or dtype, or hold no image.
        """
        size = (3, *source.pruned.tower.image_size)
        if pixels is None:
            candidates = torch.randn(CANDIDATES, *size, generator=torch.Generator().manual_seed(0))
        elif pixels.dtype != torch.float32 or tuple(pixels.shape[1:]) != size or len(pixels) == 0:
            raise ShapeError(f"pixels have shape {tuple(pixels.shape)} and dtype {pixels.dtype}, but the model takes (images, *{size}) of float32")
        else:
            candidates = pixels[:CANDIDATES]
        counts = keep_counts(default_keep, source.spec.patches)
        gaps, largest = torch.stack([_gaps(source.pruned, image[None], counts) for image in candidates]).unbind(dim=1)
        # Each location has scores of its own size.
        clearest = (gaps / largest.amax(dim=0).clamp_min(_TINY)).amin(dim=1).argsort(descending=True, stable=True)[:PROBE_IMAGES]
        return cls(candidates[clearest].contiguous(), counts, NOISE if pixels is None else GIVEN)

    def tensors(self, source: ExportSource) -> dict[str, Tensor]:
        """What `prtool.runtime.verify` reads: the pixels, PyTorch's embeddings of them at each count, and prompts likewise."""
        reference = Reference.of(source.pruned, self.pixels)
        tokens = prompts(source)
        with torch.no_grad():
            embedding = source.model.text(tokens)
        tensors = {"pixels": self.pixels, "embedding_full": reference.full(), "text_tokens": tokens, "text_embedding": embedding}
        tensors |= {f"embedding_k{k}": reference.path(source.spec.counts(Keep.count(k))).embedding for k in self.counts}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}


def keep_counts(default: int, patches: int) -> tuple[int, int, int]:
    """Three different keep counts to compare at: every patch, the default, and about a quarter.

    Raises:
        ShapeError: there are fewer than three patches.
    """
    if patches < 3:
        raise ShapeError(f"the encoder has {patches} patches, but pruning needs at least 3; use a larger image or smaller patches")
    others = (max(1, patches // 4), max(1, patches // 2), 1, 2)
    first, second, third, *_ = dict.fromkeys((patches, default, *others))
    return first, second, third


@torch.no_grad()
def _gaps(encoder: PrunedEncoder, pixels: Tensor, counts: Sequence[int]) -> Tensor:
    """How far apart the last kept and the first dropped patch of one image score, and the largest score, at each cut: (2, cuts)."""
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
                # A location that keeps the order of the first cuts where those scores lie apart, or not.
                deciding = ranked[:, :k] if isinstance(encoder.scorers[place], FirstOrder) else scores
    return torch.tensor(cuts).T


def prompts(source: ExportSource) -> Tensor:
    """Token ids (prompts, context) int64 of a few fixed prompts."""
    return source.model.tokenizer(_PROMPTS).to(torch.int64)
