"""What a reader of an evaluation's figures has to know."""

import math
from collections.abc import Container, Sequence

from prtool.trainer.data.images import ImageSet
from prtool.trainer.evaluation.baselines.base import CALIBRATION_IMAGES
from prtool.trainer.evaluation.pruner import Pruner
from prtool.trainer.evaluation.report import EvalRow
from prtool.trainer.evaluation.retrieval import VOTERS, Texts
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.settings import GOLDEN, PATCH_RANKING_TOKENS, RECOVERED

_ONE_POINT = 1.0
_SEEN_SHOWN = 3


def notes(model: DualEncoder, pruner: Pruner, methods: Container[str], unpruned: EvalRow, retrieval: tuple[int, Texts | None]) -> tuple[str, ...]:
    """Of the model, the compared methods and the images; `retrieval` is the number of images that it was computed on, and its texts."""
    found: list[str] = []
    if ("patch-ranking" in methods or PATCH_RANKING_TOKENS in methods) and not pruner.trained:
        found.append("the predictor is freshly initialised and untrained: the patches that patch-ranking keeps, and its accuracy, mean nothing")
    if not model.pretrained and (":" not in model.name or (model.name.startswith("timm:") and "." not in model.name)):
        found.append(f"{model.name} has random weights: every accuracy here is chance")
    if GOLDEN in methods:
        how, steps = pruner.golden, "one step" if pruner.golden.step == 0 else f"{pruner.golden.step} groups a step"
        found.append(
            f"golden is an oracle: it tried each image without each patch (score {how.score}, groups of {how.group} x {how.group}, {steps}); "
            "that search is not part of its GMACs"
        )
    if "avit" in methods:
        count = min(CALIBRATION_IMAGES, unpruned.images)
        found.append(
            f"avit keeps another number of patches of each image; its threshold is fitted to the budget on {count} of these images, without labels"
        )
    if PATCH_RANKING_TOKENS in methods:
        found.append(
            f"{PATCH_RANKING_TOKENS} keeps its learnable tokens on top of the patches; its drop is relative to the unpruned encoder without them"
        )
    if unpruned.accuracy is not None and not model.has_text:
        found.append(
            f"{model.name} has no text side: an accuracy is that of the {VOTERS} nearest of the other images, by the unpruned embeddings of these"
        )
    if unpruned.accuracy is None:
        found.append("the images have no labels: there is no accuracy; cosine and overlap compare with the unpruned embeddings")
    else:
        share = unpruned.accuracy / 100
        error = 100 * math.sqrt(share * (1 - share) / unpruned.images)
        if error >= _ONE_POINT:
            found.append(f"{unpruned.images} images: an accuracy has a standard error of {error:.1f} points")
    return (*found, *_retrieval_notes(unpruned.images, *retrieval))


def _retrieval_notes(images: int, drawn: int, texts: Texts | None) -> list[str]:
    notes = []
    if drawn < images:
        notes.append(f"overlap and recall are those among {drawn} of the {images} images, at equal distances (retrieval_images)")
    if texts is not None:
        notes.append(f"recall is between {drawn} images and {len(texts.embeddings)} {texts.kind}, {texts.answered} of them with an image")
        notes += [texts.note] if texts.note else []
    return notes


def run_notes(checkpoint: Checkpoint, images: ImageSet, rows: Sequence[EvalRow]) -> list[str]:
    """Of the data: the reader's own note, and whether the run was trained on others; and of keeps that its recovery did not learn."""
    notes = [images.note] if images.note else []
    root = images.origin or str(images.root.resolve())
    if root != checkpoint.data.root and checkpoint.scorer_trained:
        notes.append(f"the predictor was trained on {checkpoint.data.root}, not on this data")
    low, high = checkpoint.keep_range
    corrected = (RECOVERED, *((PATCH_RANKING_TOKENS,) if checkpoint.recovery.kept else ()))
    counts = sorted({round(row.keep * checkpoint.prune.patches) for row in rows if row.method in corrected})
    if outside := [k for k in counts if not low <= k <= high]:
        notes.append(
            f"{', '.join(map(str, outside))} patches are outside of {low} to {high}, the range that the recovery learned; "
            "bundles do not allow them: train with another recover.macs_low or recover.macs_high"
        )
    return notes


def seen_note(trained: int, validated: int, images: int, paths: Sequence[str]) -> list[str]:
    """How many of the evaluated images the run knows, or nothing."""
    if not trained + validated:
        return []
    first = ", ".join(paths[:_SEEN_SHOWN])
    return [
        f"{trained + validated} of {images} evaluated images were seen by the run, {trained} in training and {validated} in validation, and flatter "
        f"its figures: {first}{', ...' if trained + validated > _SEEN_SHOWN else ''}"
    ]
