"""Tokens that enter the pruning location, and unpruned embeddings, computed once: the encoder is frozen, so an epoch needs neither."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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

    def batches(self, wanted: range) -> Iterator[tuple[range, Tensor]]:
        """The images of a range in batches: their numbers, and their tokens as `batch` gives them."""
        for start in range(0, len(wanted), _BATCH):
            chunk = wanted[start : start + _BATCH]
            yield chunk, self.batch(chunk)


def cache_tokens(model: DualEncoder, images: ImageSet, location: int, folder: Path, progress: Progress | None = None) -> Features:
    """Computes, or finds, the tokens that enter a 1-based block; a call that was stopped continues where it stood.

    Computed in float32. Stored in float16, which halves the disk and the time of an epoch: its relative step of
    0.05 % is far below what the scorer's first LayerNorm leaves of a token, and inference feeds it float32.
    The shards go into a sub-folder of `folder` named after model, images and location, so none is taken for another's.

    Raises:
        ImageError: an image cannot be decoded.
        StorageError: a shard cannot be written.
    """
    progress = progress or SilentProgress()

    def compute(wanted: range) -> dict[str, Tensor]:
        pixels = pixel_batches(images, model.preprocess, wanted, _BATCH)
        tokens = compute_batches(pixels, lambda batch: model.tower.run_pre(batch.to(model.tower.device), location).float(), progress)
        half = tokens.half()
        # CLIP's largest tokens stay below 1,000 and float16 ends at 65,504; a shard that leaves it keeps float32.
        return {_TOKENS: half if bool(half.isfinite().all()) else tokens}

    key = _key(model, images, location)
    with stage(progress, "computing tokens (images)", len(images)):
        shards = TensorStore(folder / key[:16], key).shards(len(images), SHARD_IMAGES, compute, progress)
    return Features(tuple(shard[_TOKENS] for shard in shards), key)


def cache_unpruned(model: DualEncoder, images: ImageSet, location: int, features: Features, folder: Path, progress: Progress | None = None) -> Tensor:
    """Computes, or finds, the unpruned embeddings (images, E) float32, L2-normalised, of the native tower; resumes as `cache_tokens` does.

    `features` are what `cache_tokens` gave for the same model, images, location and folder: where the tower is the native one, the
    rest of it runs on them. A smaller tower's references come from native pixels, once for all its locations.

    Raises:
        ImageError: an image cannot be decoded.
        StorageError: a shard cannot be written.
    """
    progress, resized = progress or SilentProgress(), model.native is not model.tower

    def compute(wanted: range) -> dict[str, Tensor]:
        batches = pixel_batches(images, model.native_preprocess, wanted, _BATCH) if resized else features.batches(wanted)
        return {_UNPRUNED: compute_batches(batches, lambda inputs: unpruned(model, inputs, 0 if resized else location), progress)}

    key = _key(model, images, 0) if resized else _key(model, images, location)
    with stage(progress, "computing unpruned embeddings (images)", len(images)):
        shards = TensorStore(folder / key[:16] / _UNPRUNED, key).shards(len(images), SHARD_IMAGES, compute, progress)
    return torch.cat([shard[_UNPRUNED] for shard in shards])


def unpruned(model: DualEncoder, inputs: Tensor, location: int = 0) -> Tensor:
    """The unpruned embeddings (batch, E) float32, L2-normalised, of native pixels, or of tokens that enter a 1-based block."""
    given = inputs.to(model.native.device)
    return functional.normalize(model.native.run_post(given, location) if location else model.native(given), dim=-1).float()


@torch.no_grad()
def compute_batches(batches: Iterable[tuple[Sequence[int], Tensor]], compute: Callable[[Tensor], Tensor], progress: Progress) -> Tensor:
    """What is computed from each batch, joined on the CPU; `progress` advances once per image."""
    parts = []
    for chunk, batch in batches:
        parts.append(compute(batch).cpu())
        progress.advance(len(chunk))
    return torch.cat(parts)


def _key(model: DualEncoder, images: ImageSet, location: int) -> str:
    """Of tokens that enter a block; with location 0, of embeddings of native pixels."""
    preprocess = model.preprocess if location else model.native_preprocess
    # The name too: two architectures may share every tensor and differ in activation or pooling.
    return digest(SCHEMA, model.name, model.weights_sha256, str(preprocess), images.digest(), location, SHARD_IMAGES)
