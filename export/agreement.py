"""A finished bundle beside the PyTorch model that it came from, over many real images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prtool.bundle import Bundle
from prtool.errors import ConfigError
from prtool.export.reference import Reference
from prtool.export.source import ExportSource
from prtool.runtime.encoder import Encoder
from prtool.spec import Keep


@dataclass(frozen=True, slots=True)
class KeepAgreement:
    """One keep count.

    Attributes:
        k: patches kept.
        images: how many were compared.
        cosine_min, cosine_mean: of the embeddings; where scores tie within rounding, with the graph's choice of patches.
        same_patches: share of images whose kept patches are exactly PyTorch's.
        top1: share of images with PyTorch's first choice of class; None without classes.
    """

    k: int
    images: int
    cosine_min: float
    cosine_mean: float
    same_patches: float
    top1: float | None


def verify_with_model(
    bundle: Bundle, source: ExportSource, pixels: Tensor, counts: Sequence[int], *, engine: str = "ort", batch: int = 8
) -> tuple[KeepAgreement, ...]:
    """Compares an engine with PyTorch over many images; nothing is gated.

    Args:
        bundle: the graphs, opened.
        source: the model that made them; with classes, the first choice of each image is compared too.
        pixels: (images, 3, height, width) float32, prepared.
        counts: keep counts.
        engine: a name of the engine registry.
        batch: images in a call.

    Returns:
        One row a count.

    Raises:
        ConfigError: there is no image.
    """
    if not len(pixels):
        raise ConfigError("there are no images to compare on; give at least one")
    classes = source.model.class_embeddings(source.classnames, source.templates) if source.classnames else None
    with Encoder.load(bundle, engine=engine) as encoder:
        compared = [_compare(encoder, source, chunk, counts, classes) for chunk in torch.split(pixels, batch)]
    return tuple(_row(k, [batch[k] for batch in compared]) for k in counts)


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    """For each image of one batch: cosine, whether the patches are the same, whether the first class is."""

    cosines: Tensor
    same_patches: Tensor
    same_class: Tensor | None


def _compare(encoder: Encoder, source: ExportSource, pixels: Tensor, counts: Sequence[int], classes: Tensor | None) -> dict[int, _Compared]:
    reference, array = Reference.of(source.pruned, pixels), pixels.numpy()
    score_error = float((torch.from_numpy(encoder.scores(array)) - reference.scores).abs().max())
    compared: dict[int, _Compared] = {}
    for k in counts:
        own, chosen = reference.indices(k), torch.from_numpy(encoder.kept(array, Keep.count(k)))
        found = torch.from_numpy(encoder.encode_pixels(array, Keep.count(k)))
        wanted = reference.embedding(reference.accepted(chosen, score_error))
        same = (own.sort(dim=1).values == chosen.sort(dim=1).values).all(dim=1)
        first = None if classes is None else source.model.logits(found, classes).argmax(1) == source.model.logits(wanted, classes).argmax(1)
        compared[k] = _Compared(functional.cosine_similarity(found.double(), wanted.double()), same, first)
    return compared


def _row(k: int, parts: Sequence[_Compared]) -> KeepAgreement:
    cosines = torch.cat([part.cosines for part in parts])
    classes = [part.same_class for part in parts if part.same_class is not None]
    return KeepAgreement(
        k=k,
        images=len(cosines),
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        same_patches=float(torch.cat([part.same_patches for part in parts]).double().mean()),
        top1=float(torch.cat(classes).double().mean()) if classes else None,
    )
