"""Tokens that enter the pruning location, and unpruned embeddings, computed once: the encoder is frozen, so an epoch needs neither."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from prtool.errors import ShapeError
from prtool.progress import Progress, SilentProgress, stage
from prtool.store import digest
from prtool.trainer.data.images import ImageSet
from prtool.trainer.data.load import pixel_batches
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.store import TensorStore, tensors_digest

SCHEMA = 1
SHARD_IMAGES = 64
_BATCH = 16
_TOKENS, _UNPRUNED = "tokens", "unpruned"


@dataclass(frozen=True, slots=True)
class Features:
    """Tokens of a set of images, mapped from shard files and read on demand.

    Attributes:
        shards: each (64 images, the last up to that, prefix + N, D), float16 (float32 where float16 cannot hold a value).
        digest: of all that the tokens depend on.
    """

    shards: tuple[Tensor, ...]
    digest: str

    def __post_init__(self) -> None:
        sizes = [len(shard) for shard in self.shards]
        if any(size != SHARD_IMAGES for size in sizes[:-1]):
            raise ShapeError(f"shards of {sizes} images, but each but the last must hold {SHARD_IMAGES}")

    @classmethod
    def of(cls, tokens: Tensor) -> "Features":
        """Features from tokens in memory: (images, prefix + N, D)."""
        return cls(tuple(torch.split(tokens, SHARD_IMAGES)), tensors_digest({_TOKENS: tokens}))

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """The tokens of some images: (len(indices), prefix + N, D) float32."""
        rows = [self.shards[index // SHARD_IMAGES][index % SHARD_IMAGES] for index in indices]
        return torch.stack([row.float() for row in rows])


def cache_tokens(model: DualEncoder, images: ImageSet, location: int, folder: Path, progress: Progress | None = None) -> Features:
    """Computes, or finds, the tokens that enter a location; a call that was stopped continues where it stood.

    Computed in float32. Stored in float16, which halves the disk and the time of an epoch: its relative step of
    0.05 % is far below what the scorer's first LayerNorm leaves of a token, and inference feeds it float32.

    Args:
        model: the frozen encoder.
        images: whose tokens, in this order.
        location: 1-based block they enter.
        folder: shards go into a sub-folder named after model, images and location, so none is taken for another's.
        progress: advanced once per image.

    Raises:
        ImageError: an image cannot be decoded.
        StorageError: a shard cannot be written.
    """
    progress = progress or SilentProgress()

    def compute(wanted: range) -> dict[str, Tensor]:
        tokens = _tokens(model, images, wanted, location, progress)
        half = tokens.half()
        # CLIP's largest tokens stay below 1,000 and float16 ends at 65,504; a shard that leaves it keeps float32.
        return {_TOKENS: half if bool(half.isfinite().all()) else tokens}

    key = _key(model, images, location)
    with stage(progress, "computing tokens (images)", len(images)):
        shards = TensorStore(folder / key[:16], key).shards(len(images), SHARD_IMAGES, compute, progress)
    return Features(tuple(shard[_TOKENS] for shard in shards), key)


def cache_unpruned(model: DualEncoder, images: ImageSet, location: int, features: Features, folder: Path, progress: Progress | None = None) -> Tensor:
    """Computes, or finds next to the tokens, the unpruned embeddings (images, E) float32, L2-normalised; resumes as `cache_tokens` does.

    Args:
        model: the frozen encoder.
        images: whose embeddings.
        location: 1-based block that the tokens enter.
        features: what `cache_tokens` gave for these images and location.
        folder: as given there.
        progress: advanced once per image.

    Raises:
        StorageError: a shard cannot be written.
    """
    progress = progress or SilentProgress()
    key = _key(model, images, location)
    with stage(progress, "computing unpruned embeddings (images)", len(images)):
        store = TensorStore(folder / key[:16] / _UNPRUNED, key)
        shards = store.shards(
            len(images), SHARD_IMAGES, lambda wanted: {_UNPRUNED: _embeddings(model, features, wanted, location, progress)}, progress
        )
    return torch.cat([shard[_UNPRUNED] for shard in shards])


def _key(model: DualEncoder, images: ImageSet, location: int) -> str:
    # The name too: two architectures may share every tensor and differ in activation or pooling.
    return digest(SCHEMA, model.name, model.weights_sha256, str(model.preprocess), images.digest(), location, SHARD_IMAGES)


@torch.inference_mode()
def _tokens(model: DualEncoder, images: ImageSet, wanted: range, location: int, progress: Progress) -> Tensor:
    device = next(model.tower.parameters()).device
    parts = []
    for chunk, pixels in pixel_batches(images, model.preprocess, wanted, _BATCH):
        parts.append(model.tower.run_pre(pixels.to(device), location).float().cpu())
        progress.advance(len(chunk))
    return torch.cat(parts)


@torch.inference_mode()
def _embeddings(model: DualEncoder, features: Features, wanted: range, location: int, progress: Progress) -> Tensor:
    device = next(model.tower.parameters()).device
    parts = []
    for start in range(0, len(wanted), _BATCH):
        chunk = wanted[start : start + _BATCH]
        tokens = features.batch(chunk).to(device)
        parts.append(functional.normalize(model.tower.run_post(tokens, location), dim=-1).float().cpu())
        progress.advance(len(chunk))
    return torch.cat(parts)
