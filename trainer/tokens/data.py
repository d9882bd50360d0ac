"""What the tuning of tokens computes once: whatever of the pruned encoder runs before the first learnable token."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prtool.errors import ShapeError
from prtool.progress import Progress, SilentProgress, stage
from prtool.trainer.data.load import ImageSet
from prtool.trainer.features import Features, cache_tokens, cache_unpruned
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.pruned import PrunedEncoder

_BATCH = 16


@dataclass(frozen=True, slots=True)
class TuningImages:
    """Images on their way through the pruned encoder, and what their embeddings should be like.

    Attributes:
        inputs: what the first learnable token joins. (images, prefix + k, D) that enter the first location, its patches
            chosen; or (images, prefix + N, D) that enter an earlier block, where the choice depends on the tokens; or
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
def prepare_images(model: DualEncoder, untuned: PrunedEncoder, images: ImageSet, entry: Entry, progress: Progress | None = None) -> TuningImages:
    """Computes the inputs and targets of a set of images.

    Args:
        model: the frozen encoder.
        untuned: the same, pruned, without learnable tokens.
        images: whose.
        entry: where they stop.
        progress: hears about images.

    Raises:
        ImageError: an image cannot be decoded.
        StorageError: the cache cannot be written.
    """
    location = untuned.spec.locations[0]
    block = entry.first or location
    features = cache_tokens(model, images, block, entry.cache, progress)
    device = next(model.tower.parameters()).device
    targets = cache_unpruned(model, images, block, features, entry.cache, progress)
    inputs = []
    heard = progress or SilentProgress()
    with stage(heard, "choosing patches (images)", len(images)):
        for start in range(0, len(images), _BATCH):
            chunk = range(start, min(start + _BATCH, len(images)))
            inputs.append(_stop(untuned, features.batch(chunk).to(device), entry).to(_stored(features, entry)).cpu())
            heard.advance(len(chunk))
    return TuningImages(torch.cat(inputs), targets, torch.tensor(images.labels, dtype=torch.int64))


def embed_prepared(encoder: PrunedEncoder, inputs: Tensor, entry: Entry) -> Tensor:
    """Embeddings (batch, E), L2-normalised, of a batch of `TuningImages.inputs`, with gradients to visual tokens where there are some.

    Args:
        encoder: with the visual tokens, or without any.
        inputs: (batch, ...) as TuningImages has them.
        entry: as they were prepared with.
    """
    if not entry.first:
        return inputs
    tokens = inputs.float().to(next(encoder.tower.parameters()).device)
    spec = encoder.spec
    if encoder.visual is not None:
        tokens = encoder.visual(encoder.tower, tokens, entry.first)
    if entry.first == spec.locations[0]:
        return _behind(encoder, tokens, entry.counts)
    tokens = encoder.advance(tokens, entry.first, spec.locations[0])
    scores = encoder.scorers[0](encoder.own(tokens))
    return encoder.finish(tokens, scores, entry.counts)


def _stop(untuned: PrunedEncoder, tokens: Tensor, entry: Entry) -> Tensor:
    """Tokens that enter block `first` (the location where that is 0), as far as they go without a learnable token."""
    if entry.first and entry.first < untuned.spec.locations[0]:
        return tokens
    chosen = untuned.choose(tokens, untuned.scorers[0](tokens), entry.counts[0])
    return chosen if entry.first else _behind(untuned, chosen, entry.counts)


def _behind(encoder: PrunedEncoder, tokens: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Tokens chosen at the first location -> embedding."""
    for place in range(1, len(counts)):
        tokens, scores = encoder.run_mid(place, tokens)
        tokens = encoder.choose(tokens, scores, counts[place])
    return encoder.run_post(tokens)


def _stored(features: Features, entry: Entry) -> torch.dtype:
    # The cache's own type: it holds float16 wherever that holds the tokens, and no further digit is lost.
    if not entry.first:
        return torch.float32
    return torch.float32 if any(shard.dtype == torch.float32 for shard in features.shards) else torch.float16
