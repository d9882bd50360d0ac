"""GoldenRanking of an image set, computed shard by shard into a cache that survives being killed at any moment."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from prtool.errors import DataError
from prtool.progress import Progress, SilentProgress, stage
from prtool.store import digest
from prtool.trainer.data.images import ImageSet
from prtool.trainer.data.load import pixel_batches
from prtool.trainer.features import unpruned
from prtool.trainer.objectives.golden import GoldenSearch
from prtool.trainer.settings import GoldenConfig
from prtool.trainer.store import TensorStore, tensors_digest

SCHEMA = 1
SHARD_IMAGES = 64
# 8 images in 2 x 2 groups are about 400 candidates: full batches, and a progress bar that moves every few seconds.
_SEARCH_IMAGES = 8


@dataclass(frozen=True, slots=True)
class GoldenRanking:
    """The golden ranking of every image of a set, in its order.

    Attributes:
        ranking: (images, N) int16, patch numbers, most to least important.
        scores: (images, N) float32, the last score of each patch; high = prune first.
        location: 1-based block on entry to which patches were left out.
        config: how it was made, with the precision that "auto" became.
    """

    ranking: Tensor
    scores: Tensor
    location: int
    config: GoldenConfig


def rank_images(search: GoldenSearch, images: ImageSet, cache: Path | None, progress: Progress | None = None) -> GoldenRanking:
    """Ranks the patches of every image; a call that was stopped continues where it stood, to the same bits.

    Shards of 64 images are kept under `cache` (None keeps nothing), in a sub-folder named after everything the ranking depends on,
    so that none is taken for another's; a damaged one is ranked again, with a note.

    Raises:
        DataError: the set is empty, a label has no class, or the score "label" finds an image without one.
        ImageError: an image cannot be decoded; finished shards stay.
        StorageError: a shard cannot be written; finished shards stay.
    """
    if not len(images):
        raise DataError(f"the image set of {images.root} is empty; give at least one image to rank")
    if search.config.score == "label":
        images.require_labels("the golden score 'label'")
    progress, made = progress or SilentProgress(), replace(search.config, precision=search.tail.precision)
    key = _key(search, made, images)
    with stage(progress, "ranking patches (images)", len(images)):
        store = TensorStore(None if cache is None else cache / f"golden-{key[:16]}", key)
        shards = store.shards(len(images), SHARD_IMAGES, lambda wanted: _rank(search, images, wanted, progress), progress)
    ranking, scores = (torch.cat([shard[name] for shard in shards]) for name in ("ranking", "scores"))
    return GoldenRanking(ranking, scores, search.location, made)


def _rank(search: GoldenSearch, images: ImageSet, wanted: range, progress: Progress) -> dict[str, Tensor]:
    """Ranks one shard. Its batches start with the shard, so they are the same wherever an earlier call stopped."""
    model, rankings, scores = search.model, [], []
    references = _references(search, images, wanted)
    for chunk, pixels in pixel_batches(images, model.preprocess, wanted, _SEARCH_IMAGES):
        with torch.no_grad():
            tokens = model.tower.run_pre(pixels.to(search.tail.device), search.location)
        ranking, score = search.rank(tokens, torch.tensor([images.labels[i] for i in chunk]), next(references))
        rankings.append(ranking.to("cpu", torch.int16))
        scores.append(score.cpu())
        progress.advance(len(chunk))
    return {"ranking": torch.cat(rankings), "scores": torch.cat(scores)}


@torch.no_grad()
def _references(search: GoldenSearch, images: ImageSet, wanted: range) -> Iterator[Tensor | None]:
    """The unpruned embeddings of each batch, where they are not those of all its tokens: of larger, native pixels."""
    model = search.model
    if model.native is model.tower or search.config.score != "feature":
        yield from itertools.repeat(None)
    for _, pixels in pixel_batches(images, model.native_preprocess, wanted, _SEARCH_IMAGES):
        yield unpruned(model, pixels)


def _key(search: GoldenSearch, made: GoldenConfig, images: ImageSet) -> str:
    """Of everything that a ranking depends on."""
    model, classes = search.model, None if made.score == "feature" else search.classes
    logits = None if classes is None else [model.logit_scale, model.logit_bias, tensors_digest({"classes": classes})]
    # ViT-B-16 and ViT-B-16-quickgelu may hold the same weights; only their names differ.
    encoder = [model.name, model.weights_sha256, asdict(model.preprocess), model.native_preprocess.size, logits]
    return digest(SCHEMA, search.location, asdict(made), encoder, images.digest(), SHARD_IMAGES, _SEARCH_IMAGES)
