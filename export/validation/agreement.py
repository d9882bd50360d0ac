"""A bundle compared with the PyTorch model that it came from, on many real images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from prtool.bundle import Bundle
from prtool.engines.base import EngineOptions
from prtool.errors import ConfigError, ParityError
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.decisions import NEIGHBOURS, TOP1, Decisions
from prtool.export.validation.reference import Reference, overlap
from prtool.runtime.encoder import Encoder
from prtool.runtime.verify import QUIET, gate_of
from prtool.spec import Keep
from prtool.text_safety import printable
from prtool.trainer.data.images import NO_LABEL
from prtool.trainer.evaluation.retrieval import Neighbours, Recall, Texts
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.models.reduced import ReducedEncoder

_WORST = 5
_SHARES = {TOP1: "first class", NEIGHBOURS: "nearest images"}
_BATCH = 8


@dataclass(frozen=True, slots=True)
class KeepAgreement:
    """One keep count.

    Attributes:
        k: patches kept.
        images: how many were compared.
        cosine_min, cosine_mean: of the embeddings, each with its own selection or merging of patches.
        same_patches: mean share of the kept patches that PyTorch keeps too; None where patches are not ranked.
        top1: share of images with the same first class as in PyTorch; None without classes.
        neighbours: mean share of each image's ten nearest images, among those compared, that are its nearest in PyTorch too; None with
            fewer than four images.
        worst: numbers of the images with the lowest cosines, worst first, at most five.
        recall, recall_pytorch: recall@1, 5 and 10 between the class prompts and these images, of the engine and of PyTorch; None where
            there are no classes, or an image's class is not known.
    """

    k: int
    images: int
    cosine_min: float
    cosine_mean: float
    same_patches: float | None
    top1: float | None
    neighbours: float | None
    worst: tuple[int, ...]
    recall: Recall | None = None
    recall_pytorch: Recall | None = None


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """What is compared with PyTorch: an engine of the registry, its precision, the maximum number of images, and how the engine runs."""

    engine: str = "ort"
    precision: str = "fp32"
    images: int = 64
    options: EngineOptions = QUIET


def verify_with_model(
    bundle: Bundle, source: ExportSource, pixels: Pixels, counts: Sequence[int], ask: VerifyRequest | None = None, labels: Sequence[int] = ()
) -> tuple[KeepAgreement, ...]:
    """Compares an engine with PyTorch in float32 on many images; no gate is applied.

    Args:
        bundle: an opened bundle.
        source: the model that it was exported from; with classes, the first class of each image is compared too.
        pixels: prepared images.
        counts: keep counts.
        ask: engine and precision; all of `pixels` are compared.
        labels: the class of each image, or -1; () for none known.

    Returns:
        One row a count.

    Raises:
        ConfigError: there is no image.
    """
    if not len(pixels):
        raise ConfigError("there are no images to compare on; give at least one")
    chosen = ask or VerifyRequest()
    found: dict[int, list[tuple[Tensor, ...]]] = {k: [] for k in counts}
    with Encoder.load(bundle, engine=chosen.engine, precision=chosen.precision, options=chosen.options) as encoder:
        for chunk in pixels.split(_BATCH):
            for k, tensors in zip(counts, _compared(source.pruned, encoder, chunk.own, counts), strict=True):
                found[k].append(tensors)
    classes = source.classes()
    texts = None if classes is None or not labels or NO_LABEL in labels else Texts.of_classes(classes, labels)
    rows = []
    for k in counts:
        engine, pytorch, *shared = map(torch.cat, zip(*found[k], strict=True))
        row = replace(_row(source, classes, k, engine, pytorch), same_patches=float(shared[0].mean()) if shared else None)
        rows.append(row if texts is None else replace(row, recall=texts.recall(engine), recall_pytorch=texts.recall(pytorch)))
    return tuple(rows)


@torch.no_grad()
def _compared(reduced: ReducedEncoder, encoder: Encoder, pixels: Tensor, counts: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
    """For each count: embeddings of the engine and of PyTorch, and where patches are ranked the share of kept ones that are the same."""
    array = pixels.numpy()
    if not isinstance(reduced, PrunedEncoder):
        for k in counts:
            yield torch.from_numpy(encoder.encode_pixels(array, Keep.count(k))), reduced.encode(pixels, reduced.spec.counts(k))
        return
    reference = Reference(reduced, pixels)
    for k in counts:
        keep = Keep.count(k)
        route, kept = reference.route(reduced.spec.counts(keep)), torch.from_numpy(encoder.kept(array, keep)[-1])
        yield torch.from_numpy(encoder.encode_pixels(array, keep)), route.embedding, overlap(route.patches, kept)


def check_agreement(rows: Sequence[KeepAgreement], ask: VerifyRequest, judged: Decisions, names: Sequence[str] = ()) -> None:
    """Applies the precision's gate: mean cosine, and what `judged` names.

    Args:
        rows: as `verify_with_model` returns them.
        ask: what computed them.
        judged: whether first classes decide, or nearest images.
        names: of the images, for the message; none gives their numbers.

    Raises:
        ParityError: mean cosine, or the agreement of classes or of nearest images, is below the gate; the message names the worst images.
    """
    gate = gate_of(ask.precision)
    for row in rows:
        share = getattr(row, judged.decided_by) if judged.decided_by in _SHARES else None
        least = getattr(gate, judged.decided_by)
        if row.cosine_mean >= gate.mean_cosine and (share is None or share >= least):
            continue
        worst = ", ".join(printable(names[place]) if names else f"image {place}" for place in row.worst)
        said = "" if share is None else f", {share:.1%} of images keep their {_SHARES[judged.decided_by]} (gate {least:.0%}; {judged.why})"
        raise ParityError(
            f"{ask.engine} in {ask.precision} disagrees with PyTorch at {row.k} patches over {row.images} images: mean cosine {row.cosine_mean:.6f} "
            f"(gate {gate.mean_cosine}){said}; worst: {worst}; use a higher precision, or export the bundle again from this run"
        )


def _row(source: ExportSource, classes: Tensor | None, k: int, found: Tensor, wanted: Tensor) -> KeepAgreement:
    cosines = functional.cosine_similarity(found.double(), wanted.double())
    first = [] if classes is None else [source.model.logits(embeddings, classes).argmax(1) for embeddings in (found, wanted)]
    return KeepAgreement(
        k=k,
        images=len(cosines),
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        same_patches=None,
        top1=float((first[0] == first[1]).double().mean()) if first else None,
        neighbours=Neighbours(wanted).own(found),
        worst=tuple(int(place) for place in cosines.argsort(stable=True)[:_WORST]),
    )
