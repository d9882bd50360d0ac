"""GoldenRanking of an image set, computed shard by shard into a cache that survives being killed at any moment."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from prtool.errors import DataError
from prtool.progress import Progress, SilentProgress, stage
from prtool.trainer.data.load import ImageSet, pixel_batches
from prtool.trainer.models.dual_encoder import content_digest
from prtool.trainer.objectives.golden import GoldenSearch
from prtool.trainer.settings import GoldenConfig
from prtool.trainer.stored_tensors import keep_tensors, recall_tensors

SCHEMA = 1
SHARD_IMAGES = 64
# 8 images in 2 x 2 groups are about 400 candidates: full batches, and a progress bar that moves every few seconds.
_SEARCH_IMAGES = 8


@dataclass(frozen=True, slots=True)
class GoldenRanking:
    """The golden ranking of every image of a set.

    Attributes:
        ranking: (images, N) int16, patch numbers, most to least important.
        scores: (images, N) float32, the last score of each patch; high = prune first.
        paths: (images,), as in the image set.
        location: 1-based block on entry to which patches were left out.
        config: how it was made, with the precision that "auto" became.
        model_sha256: digest of the image tower.
        data_sha256: digest of the image set.
    """

    ranking: Tensor
    scores: Tensor
    paths: tuple[str, ...]
    location: int
    config: GoldenConfig
    model_sha256: str
    data_sha256: str

    def __len__(self) -> int:
        return len(self.paths)


def rank_images(search: GoldenSearch, images: ImageSet, cache: Path | None, progress: Progress | None = None) -> GoldenRanking:
    """Ranks the patches of every image; a call that was stopped goes on where it stood, to the same bits.

    Args:
        search: the encoder, the location and how to rank.
        images: what to rank; the labels are used by the score "label" only.
        cache: folder in which shards of 64 images are kept, in a sub-folder named after everything the ranking
            depends on, so that none is taken for another's; a damaged one is ranked again, with a note. None keeps nothing.
        progress: advanced once per image.

    Raises:
        DataError: the set is empty, a label has no class, or the score "label" finds an image without one.
        ImageError: an image cannot be decoded; finished shards stay.
        StorageError: a shard cannot be written; finished shards stay.
    """
    if not len(images):
        raise DataError(f"the image set of {images.root} is empty; give at least one image to rank")
    model = search.model
    if search.config.score == "label":
        images.require_labels("the golden score 'label'")
    made = replace(search.config, precision=search.tail.precision)
    data_sha256 = images.digest()
    store = None if cache is None else _Store.of(cache, _depends(search, data_sha256, made))
    parts: list[tuple[Tensor, Tensor]] = []
    with stage(progress := progress or SilentProgress(), "ranking patches (images)", len(images)):
        for number, start in enumerate(range(0, len(images), SHARD_IMAGES)):
            wanted = range(start, min(start + SHARD_IMAGES, len(images)))
            part = None if store is None else store.read(number)
            if part is None:
                part = _rank(search, images, wanted, progress)
                if store is not None:
                    store.write(number, part)
            else:
                progress.advance(len(wanted))
            parts.append(part)
    ranking, scores = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return GoldenRanking(ranking, scores, images.paths, search.location, made, model.weights_sha256, data_sha256)


def _rank(search: GoldenSearch, images: ImageSet, wanted: range, progress: Progress) -> tuple[Tensor, Tensor]:
    """Ranks one shard. Its batches start with the shard, so they are the same wherever an earlier call stopped."""
    model, device = search.model, search.tail.device
    parts = []
    for chunk, pixels in pixel_batches(images, model.preprocess, wanted, _SEARCH_IMAGES):
        with torch.no_grad():
            tokens = model.tower.run_pre(pixels.to(device), search.location)
        ranking, scores = search.rank(tokens, torch.tensor([images.labels[i] for i in chunk]))
        parts.append((ranking.to("cpu", torch.int16), scores.cpu()))
        progress.advance(len(chunk))
    rankings, all_scores = zip(*parts, strict=True)
    return torch.cat(rankings), torch.cat(all_scores)


def _depends(search: GoldenSearch, data_sha256: str, config: GoldenConfig) -> dict[str, object]:
    """Everything that a ranking depends on."""
    model, classes = search.model, None if config.score == "feature" else search.classes
    return {
        "schema": SCHEMA,
        "location": search.location,
        "config": asdict(config),
        # ViT-B-16 and ViT-B-16-quickgelu may hold the same weights and are told apart by name alone.
        "model": model.name,
        "model_sha256": model.weights_sha256,
        "preprocess": asdict(model.preprocess),
        "logits": None if classes is None else [model.logit_scale, model.logit_bias, content_digest(classes)],
        "data_sha256": data_sha256,
        "shard_images": SHARD_IMAGES,
        "search_images": _SEARCH_IMAGES,
    }


@dataclass(frozen=True, slots=True)
class _Store:
    """One sub-folder of a cache: 00000.safetensors, 00001.safetensors, ..."""

    folder: Path
    key: str

    @classmethod
    def of(cls, cache: Path, depends: dict[str, object]) -> "_Store":
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        return cls(cache / f"golden-{key[:16]}", key)

    def read(self, number: int) -> tuple[Tensor, Tensor] | None:
        """The ranking and scores of a finished shard, or None where there is none yet."""
        found = recall_tensors(self._path(number), f"{self.key} {number}")
        return None if found is None else (found.tensors["ranking"], found.tensors["scores"])

    def write(self, number: int, part: tuple[Tensor, Tensor]) -> None:
        keep_tensors(self._path(number), f"{self.key} {number}", {"ranking": part[0], "scores": part[1]})

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"
