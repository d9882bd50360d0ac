"""What recovery learns from, computed once by the frozen encoder: tokens that enter the first corrected block, and what they become."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from prtool.progress import Progress, stage
from prtool.store import digest
from prtool.trainer.data.copies import Copies
from prtool.trainer.data.images import ImageSet
from prtool.trainer.data.load import pixel_batches
from prtool.trainer.features import SHARD_IMAGES, Features
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.store import TensorStore

SCHEMA = 2
_BATCH = 16
_TOKENS, _UNPRUNED = "tokens", "unpruned"


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """Images, or items of `Copies`, with what the frozen encoder makes of them.

    Attributes:
        tokens: (prefix + N, D) each, that enter the first corrected block of the encoder that is recovered.
        embeddings: (items, E) float32, L2-normalised, of the unpruned encoder.
    """

    tokens: Features
    embeddings: Tensor


def teach(model: DualEncoder, images: ImageSet, first: int, copies: Copies, folder: Path, progress: Progress) -> Taught:
    """Computes, or finds, what the frozen encoder makes of images and their copies; a call that was stopped goes on where it stood.

    `first` is the 1-based block from which on the encoder is corrected.

    The tokens are stored in float16, as `cache_tokens` does, and mapped from their files: memory does not grow with the images.

    Raises:
        ImageError: an image cannot be decoded.
        StorageError: a shard cannot be written.
    """
    tower, native = model.tower, model.native

    def compute(wanted: range) -> Mapping[str, Tensor]:
        parts = [_taught(tower, native, own, full, first) for own, full in _pixels(model, images, copies, wanted)]
        progress.advance(len(wanted))
        tokens, embeddings = (torch.cat(column) for column in zip(*parts, strict=True))
        return {_TOKENS: _half(tokens), _UNPRUNED: embeddings}

    preprocess = [str(model.preprocess), str(model.native_preprocess)]
    key = digest(SCHEMA, model.name, model.weights_sha256, preprocess, images.digest(), first, astuple(copies), SHARD_IMAGES)
    with stage(progress, "computing what recovery learns from (images)", len(copies)):
        shards = TensorStore(folder / key[:16], key).shards(len(copies), SHARD_IMAGES, compute, progress)
    return Taught(Features(tuple(shard[_TOKENS] for shard in shards), key), torch.cat([shard[_UNPRUNED] for shard in shards]))


def _pixels(model: DualEncoder, images: ImageSet, copies: Copies, items: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels for the recovered encoder and for the unpruned one."""
    full = pixel_batches(images, model.native_preprocess, items, _BATCH, copies=copies)
    if model.native is model.tower:
        yield from ((pixels, pixels) for _, pixels in full)
        return
    own = pixel_batches(images, model.preprocess, items, _BATCH, copies=copies)
    yield from ((smaller, pixels) for (_, smaller), (_, pixels) in zip(own, full, strict=True))


@torch.no_grad()
def _taught(tower: VisionTower, native: VisionTower, own: Tensor, full: Tensor, first: int) -> tuple[Tensor, Tensor]:
    whole = native.run_pre(full.to(native.device), first)
    tokens = whole if native is tower else tower.run_pre(own.to(tower.device), first)
    embedding = functional.normalize(native.run_post(whole, first), dim=-1)
    return tokens.cpu(), embedding.float().cpu()


def _half(tokens: Tensor) -> Tensor:
    """Tokens in float16 where that holds them."""
    half = tokens.half()
    return half if bool(half.isfinite().all()) else tokens
