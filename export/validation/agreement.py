"""A finished bundle beside the PyTorch model that it came from, over many real images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prtool.bundle import Bundle
from prtool.engines.base import EngineOptions
from prtool.errors import ConfigError, ParityError
from prtool.export.source import ExportSource
from prtool.export.validation.decisions import COSINE, NEIGHBOURS, TOP1, Decisions, neighbour_overlap
from prtool.export.validation.reference import Reference, overlap
from prtool.runtime.encoder import Encoder
from prtool.runtime.verify import QUIET, gate_of
from prtool.spec import Keep
from prtool.text_safety import printable

_WORST = 5
_WORDS = {TOP1: "first class", NEIGHBOURS: "nearest images"}
_BATCH = 8


@dataclass(frozen=True, slots=True)
class KeepAgreement:
    """One keep count.

    Attributes:
        k: patches kept.
        images: how many were compared.
        cosine_min, cosine_mean: of the embeddings, each way with its own choice of patches.
        same_patches: mean share of the kept patches that PyTorch keeps too.
        top1: share of images with PyTorch's first choice of class; None without classes.
        neighbours: mean share of each image's five nearest images, among those compared, that are its nearest in PyTorch too; None with
            fewer than four images.
        worst: numbers of the images with the lowest cosines, worst first, at most five.
    """

    k: int
    images: int
    cosine_min: float
    cosine_mean: float
    same_patches: float
    top1: float | None
    neighbours: float | None
    worst: tuple[int, ...]


_SHARES: dict[str, Callable[[KeepAgreement], float | None]] = {
    TOP1: lambda row: row.top1,
    NEIGHBOURS: lambda row: row.neighbours,
    COSINE: lambda _: None,
}


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """What is compared with PyTorch: an engine of the registry, its precision, on how many images at most, and how the engine runs."""

    engine: str = "ort"
    precision: str = "fp32"
    images: int = 64
    options: EngineOptions = QUIET


def verify_with_model(
    bundle: Bundle, source: ExportSource, pixels: Tensor, counts: Sequence[int], ask: VerifyRequest | None = None
) -> tuple[KeepAgreement, ...]:
    """Compares an engine with PyTorch in float32 over many images; nothing is gated.

    Args:
        bundle: the graphs, opened.
        source: the model that made them; with classes, the first choice of each image is compared too.
        pixels: (images, 3, height, width) float32, prepared.
        counts: keep counts.
        ask: engine and precision; all of `pixels` are compared.

    Returns:
        One row a count.

    Raises:
        ConfigError: there is no image.
    """
    if not len(pixels):
        raise ConfigError("there are no images to compare on; give at least one")
    classes = source.classes()
    chosen = ask or VerifyRequest()
    with Encoder.load(bundle, engine=chosen.engine, precision=chosen.precision, options=chosen.options) as encoder:
        compared = [_compare(encoder, source, chunk, counts, classes) for chunk in torch.split(pixels, _BATCH)]
    return tuple(_row(k, [batch[k] for batch in compared]) for k in counts)


def check_agreement(rows: Sequence[KeepAgreement], ask: VerifyRequest, judged: Decisions, names: Sequence[str] = ()) -> None:
    """Holds rows against the precision's gate: mean cosine, and what `judged` names.

    Args:
        rows: as `verify_with_model` gives them.
        ask: what computed them.
        judged: whether first classes decide, or nearest images.
        names: of the images, for the message; none gives their numbers.

    Raises:
        ParityError: mean cosine, or the agreement of classes or of nearest images, is below the gate; the message names the worst images.
    """
    gate = gate_of(ask.precision)
    for row in rows:
        share = _SHARES[judged.decided_by](row)
        least = getattr(gate, judged.decided_by)
        if row.cosine_mean >= gate.mean_cosine and (share is None or share >= least):
            continue
        worst = ", ".join(printable(names[place]) if names else f"image {place}" for place in row.worst)
        said = "" if share is None else f", {share:.1%} of images keep their {_WORDS[judged.decided_by]} (gate {least:.0%}; {judged.why})"
        raise ParityError(
            f"{ask.engine} in {ask.precision} disagrees with PyTorch at {row.k} patches over {row.images} images: mean cosine {row.cosine_mean:.6f} "
            f"(gate {gate.mean_cosine}){said}; worst: {worst}; use a higher precision, or export the bundle again from this run"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    """For each image of one batch: cosine, share of patches in common, whether the first class is the same, and the embeddings."""

    cosines: Tensor
    same_patches: Tensor
    same_class: Tensor | None
    found: Tensor
    wanted: Tensor


def _compare(encoder: Encoder, source: ExportSource, pixels: Tensor, counts: Sequence[int], classes: Tensor | None) -> dict[int, _Compared]:
    reference, array = Reference.of(source.pruned, pixels), pixels.numpy()
    compared: dict[int, _Compared] = {}
    for k in counts:
        keep = Keep.count(k)
        path, chosen = reference.path(source.spec.counts(keep)), torch.from_numpy(encoder.kept(array, keep)[-1])
        found, wanted = torch.from_numpy(encoder.encode_pixels(array, keep)), path.embedding
        shared = torch.tensor([overlap(a[None], b[None]) for a, b in zip(path.patches, chosen, strict=True)])
        first = None if classes is None else source.model.logits(found, classes).argmax(1) == source.model.logits(wanted, classes).argmax(1)
        compared[k] = _Compared(functional.cosine_similarity(found.double(), wanted.double()), shared, first, found, wanted)
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
        neighbours=neighbour_overlap(torch.cat([part.found for part in parts]), torch.cat([part.wanted for part in parts])),
        worst=tuple(int(place) for place in cosines.argsort(stable=True)[:_WORST]),
    )
