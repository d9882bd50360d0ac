"""What the training of learnable tokens computes once: the part of the pruned encoder that runs before the first of them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prtool.errors import ShapeError
from prtool.progress import Progress, SilentProgress, stage
from prtool.trainer.data.images import ImageSet
from prtool.trainer.features import cache_tokens, cache_unpruned, compute_batches
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.pruned import PrunedEncoder


@dataclass(frozen=True, slots=True)
class PreparedImages:
    """Images part of the way through the pruned encoder, and what their embeddings should be.

    Attributes:
        inputs: what the first learnable token is appended to. (images, prefix + k, D) that enter the first location, its patches
            selected; or (images, prefix + N, D) that enter an earlier block, where the selection depends on the tokens; or
            (images, E) final embeddings, where no visual token is learned.
        targets: (images, E) float32, L2-normalised embeddings of the unpruned encoder.
        labels: (images,) int64.
    """

    inputs: Tensor
    targets: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if not len(self.inputs) == len(self.targets) == len(self.labels):
            counts = f"{len(self.inputs)} inputs, {len(self.targets)} targets and {len(self.labels)} labels"
            raise ShapeError(f"{counts} do not belong together; give one of each for every image")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where learnable tokens enter, and how many patches stay.

    Attributes:
        first: 1-based block on entry to which visual tokens are appended; 0 where there are none.
        counts: patches kept at each location.
        cache: folder of tokens that enter a block, shared with other phases.
    """

    first: int
    counts: tuple[int, ...]
    cache: Path


@torch.no_grad()
def prepare_images(model: DualEncoder, plain: PrunedEncoder, images: ImageSet, entry: Entry, progress: Progress | None = None) -> PreparedImages:
    """Computes the inputs and targets of a set of images; `plain` is the model pruned, without learnable tokens.

    Raises:
        ImageError: an image cannot be decoded.
        StorageError: the cache cannot be written.
    """
    progress = progress or SilentProgress()
    block = entry.first or plain.spec.locations[0]
    features = cache_tokens(model, images, block, entry.cache, progress)
    targets = cache_unpruned(model, images, block, features, entry.cache, progress)
    # The cache's own type: it holds float16 wherever that holds the tokens, and no further digit is lost.
    is_half = bool(entry.first) and all(shard.dtype == torch.float16 for shard in features.shards)
    dtype = torch.float16 if is_half else torch.float32
    with stage(progress, "selecting patches (images)", len(images)):
        batches = features.batches(range(len(images)))
        inputs = compute_batches(batches, lambda tokens: _stop(plain, tokens.to(model.tower.device), entry).to(dtype), progress)
    return PreparedImages(inputs, targets, torch.tensor(images.labels, dtype=torch.int64))


def embed_prepared(encoder: PrunedEncoder, inputs: Tensor, entry: Entry) -> Tensor:
    """Embeddings (batch, E), L2-normalised, of a batch of `PreparedImages.inputs`, with gradients to visual tokens where there are some."""
    if not entry.first:
        return inputs
    tokens = inputs.float().to(encoder.tower.device)
    if entry.first == encoder.spec.locations[0]:
        return encoder.finish_selected(encoder.append(tokens, entry.first), entry.counts)
    return encoder.finish(*encoder.run_pre_from(tokens, entry.first), entry.counts)


def _stop(plain: PrunedEncoder, tokens: Tensor, entry: Entry) -> Tensor:
    """Tokens that enter block `first` (the location where that is 0), as far as they go without a learnable token."""
    location = plain.spec.locations[0]
    if entry.first and entry.first < location:
        return tokens
    selected = plain.drop(*plain.run_pre_from(tokens, location), entry.counts[0])
    return selected if entry.first else plain.finish_selected(selected, entry.counts)
