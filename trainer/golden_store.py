"""GoldenRanking of an image set, computed shard by shard into a cache that survives being killed at any moment."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from prtool.errors import CheckpointError, DataError
from prtool.files import write_bytes, write_json
from prtool.progress import Progress, SilentProgress, stage
from prtool.trainer.data import ImageSet, pixel_batches
from prtool.trainer.golden import GoldenSearch
from prtool.trainer.model import DualEncoder
from prtool.trainer.settings import GoldenConfig

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
        config: how it was made, with the precision that "auto" became.
        model_sha256: digest of the image tower.
        data_sha256: digest of the image set.
    """

    ranking: Tensor
    scores: Tensor
    paths: tuple[str, ...]
    config: GoldenConfig
    model_sha256: str
    data_sha256: str

    def __len__(self) -> int:
        return len(self.paths)


def rank_images(
    model: DualEncoder,
    images: ImageSet,
    config: GoldenConfig,
    cache: Path | None,
    classes: Tensor | None = None,
    progress: Progress | None = None,
) -> GoldenRanking:
    """Ranks the patches of every image; a call that was stopped goes on where it stood, to the same bits.

    Args:
        model: the frozen encoder.
        images: what to rank; the labels are used by the score "label" only.
        config: how to rank.
        cache: folder in which shards of 64 images are kept, in a sub-folder named after everything the ranking
            depends on, so that none is taken for another's; None keeps nothing.
        classes: (classes, E) float32, L2-normalised; needed by the scores "label" and "confidence".
        progress: hears about images.

    Raises:
        ConfigError: the configuration does not fit the encoder, or classes are missing.
        DataError: the set is empty, a label has no class, or the score "label" finds an image without one.
        ImageError: an image cannot be decoded; finished shards stay.
        CheckpointError: a shard or the index in the cache is damaged.
        StorageError: a shard cannot be written; finished shards stay.
    """
    if not len(images):
        raise DataError(f"the image set of {images.root} is empty; give at least one image to rank")
    if config.score == "label":
        images.require_labels("the golden score 'label'")
    search = GoldenSearch(model, config, classes)
    made = replace(config, precision=search.tail.precision)
    index = _index(model, images, made, None if config.score == "feature" else classes)
    store = None if cache is None else _Store.open(cache, index)
    parts: list[tuple[Tensor, Tensor]] = []
    with stage(progress := progress or SilentProgress(), "ranking patches (images)", len(images)):
        for number, start in enumerate(range(0, len(images), SHARD_IMAGES)):
            wanted = range(start, min(start + SHARD_IMAGES, len(images)))
            shape = (len(wanted), model.tower.patches)
            part = None if store is None else store.read(number, shape)
            if part is None:
                part = _rank(search, images, wanted, progress)
                if store is not None:
                    store.write(number, part)
            else:
                progress.advance(len(wanted))
            parts.append(part)
    ranking, scores = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return GoldenRanking(ranking, scores, images.paths, made, model.weights_sha256, str(index["data_sha256"]))


def _rank(search: GoldenSearch, images: ImageSet, wanted: range, progress: Progress) -> tuple[Tensor, Tensor]:
    """Ranks one shard. Its batches start with the shard, so they are the same wherever an earlier call stopped."""
    model, device = search.model, search.tail.device
    parts = []
    for chunk, pixels in pixel_batches(images, model.preprocess, wanted, _SEARCH_IMAGES):
        with torch.no_grad():
            tokens = model.tower.enter(pixels.to(device), search.config.location)
        ranking, scores = search.rank(tokens, torch.tensor([images.labels[i] for i in chunk]))
        parts.append((ranking.to("cpu", torch.int16), scores.cpu()))
        progress.advance(len(chunk))
    rankings, all_scores = zip(*parts, strict=True)
    return torch.cat(rankings), torch.cat(all_scores)


def _index(model: DualEncoder, images: ImageSet, config: GoldenConfig, classes: Tensor | None) -> dict[str, object]:
    """Everything a ranking depends on, and the paths of its images."""
    return {
        "schema": SCHEMA,
        "config": asdict(config),
        # ViT-B-16 and ViT-B-16-quickgelu may hold the same weights and are told apart by name alone.
        "model": model.name,
        "model_sha256": model.weights_sha256,
        "preprocess": asdict(model.preprocess),
        "logits": None if classes is None else [model.logit_scale, model.logit_bias, hashlib.sha256(_bytes(classes.cpu())).hexdigest()],
        "data_sha256": images.digest(),
        "shard_images": SHARD_IMAGES,
        "search_images": _SEARCH_IMAGES,
        "paths": list(images.paths),
    }


@dataclass(frozen=True, slots=True)
class _Store:
    """One sub-folder of a cache: index.json and 00000.safetensors, 00001.safetensors, ..."""

    folder: Path
    key: str

    @classmethod
    def open(cls, cache: Path, index: dict[str, object]) -> "_Store":
        key = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
        folder = cache / f"golden-{key[:16]}"
        path = folder / "index.json"
        if not path.exists():
            write_json(path, {**index, "key": key})
            return cls(folder, key)
        try:
            found = json.loads(path.read_bytes())["key"]
        except (ValueError, KeyError, TypeError) as cause:
            raise CheckpointError(f"{path} is damaged ({cause}); delete the folder {folder} and run the command again") from cause
        if found != key:
            raise CheckpointError(f"{path} belongs to another ranking; delete the folder {folder} and run the command again")
        return cls(folder, key)

    def read(self, number: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
        """A finished shard of this (images, N), or None where there is none yet."""
        path = self._path(number)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            tensors = load(content)
            part = tensors["ranking"], tensors["scores"]
            stamp = _stamp_of(content)
        except (SafetensorError, KeyError, ValueError) as cause:
            raise self._damaged(path, str(cause)) from cause
        if stamp != self._stamp(number, part) or part[0].shape != shape or part[1].shape != shape:
            raise self._damaged(path, "its digest does not fit its content")
        return part

    def write(self, number: int, part: tuple[Tensor, Tensor]) -> None:
        tensors = {"ranking": part[0].contiguous(), "scores": part[1].contiguous()}
        write_bytes(self._path(number), save(tensors, metadata=self._stamp(number, part)))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def _stamp(self, number: int, part: tuple[Tensor, Tensor]) -> dict[str, str]:
        digest = hashlib.sha256(_bytes(part[0]) + _bytes(part[1])).hexdigest()
        # One entry: safetensors writes several in any order, and equal shards would differ in their bytes.
        return {"prtool": json.dumps({"schema": SCHEMA, "key": self.key, "number": number, "sha256": digest})}

    @staticmethod
    def _damaged(path: Path, why: str) -> CheckpointError:
        return CheckpointError(f"{path} is damaged ({why}); delete this file and run the command again, which ranks its images anew")


def _stamp_of(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: eight bytes of length, then a JSON header."""
    size = int.from_bytes(content[:8], "little")
    stamp: dict[str, str] = json.loads(content[8 : 8 + size])["__metadata__"]
    return stamp


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
