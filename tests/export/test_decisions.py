"""What a reduced precision is held to: first classes where they mean something, else nearest images."""

import pytest
import torch

from prtool.errors import ParityError
from prtool.export.validation.agreement import KeepAgreement, VerifyRequest, check_agreement
from prtool.export.validation.decisions import COSINE, NEIGHBOURS, TOP1, Decisions, Unpruned
from prtool.runtime.verify import GATES


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


INT8 = GATES["int8"]


def unpruned(right: int, images: int, classes: int, labels: list[int]) -> Unpruned:
    """Embeddings that each lie at a class of their own axis: margins are as large as can be."""
    axes = torch.eye(classes)
    chosen = [label if place < right else (label + 1) % classes for place, label in enumerate(i % classes for i in range(images))]
    return Unpruned(axes[chosen], axes, labels)


@pytest.mark.parametrize(
    ("right", "images", "classes", "decided"),
    [
        (1, 50, 37, NEIGHBOURS),  # 2 % of 37 classes, as in the report
        (50, 50, 37, TOP1),
        (8, 64, 37, NEIGHBOURS),  # 12.5 %, less than ten points above chance
        (9, 64, 37, TOP1),
        (43, 64, 2, NEIGHBOURS),  # 67 % of two classes lie within three standard errors of chance
        (45, 64, 2, TOP1),
    ],
)
def test_known_labels_decide_by_accuracy(right: int, images: int, classes: int, decided: str) -> None:
    labels = [i % classes for i in range(images)]
    assert (unpruned(right, images, classes, labels).judged(INT8).decided_by == TOP1) is (decided == TOP1)
    for unknown in ([], [-1] * images):
        assert unpruned(right, images, classes, unknown).judged(INT8).decided_by == TOP1


@pytest.mark.parametrize(
    ("precision", "margin", "decided"), [("int8", 0.002, NEIGHBOURS), ("int8", 0.1, TOP1), ("fp16", 0.0001, NEIGHBOURS), ("fp16", 0.01, TOP1)]
)
def test_margins_must_be_larger_than_what_the_cosine_gate_allows(precision: str, margin: float, decided: str) -> None:
    width = 256
    classes = torch.nn.functional.normalize(torch.eye(width)[0] + 0.3 * torch.eye(width)[1:4], dim=1)
    towards = torch.eye(width)[0].repeat(40, 1)
    # The cosine to class 0 exceeds the others' by the margin.
    towards[:, 1] = margin / float(classes[0, 1])
    embeddings = torch.nn.functional.normalize(towards, dim=1)
    assert (Unpruned(embeddings, classes, [0] * 40).judged(GATES[precision]).decided_by == TOP1) is (decided == TOP1)


def test_without_classes_neighbours_decide() -> None:
    apart = torch.nn.functional.normalize(seeded(6, 64).repeat_interleave(6, 0) + 0.3 * seeded(36, 64, seed=1), dim=1)
    assert Unpruned(apart, None).judged(INT8).decided_by == NEIGHBOURS
    assert Unpruned(apart, torch.eye(64)[:1]).judged(INT8).decided_by == NEIGHBOURS


def test_images_that_are_too_alike_or_too_few_leave_the_cosine() -> None:
    """As those of a model with random weights, whose neighbours any rounding exchanges."""
    alike = torch.nn.functional.normalize(torch.eye(64)[0] + 0.001 * seeded(36, 64), dim=1)
    assert Unpruned(alike, None).judged(INT8).decided_by == COSINE
    assert Unpruned(torch.eye(3), None).judged(INT8).decided_by == COSINE


def row(mean: float, top1: float | None, neighbours: float | None) -> KeepAgreement:
    return KeepAgreement(10, 64, 0.95, mean, 0.9, top1, neighbours, (0,))


def test_meaningless_classes_reject_nothing() -> None:
    """int8 with a mean cosine of 0.992 that keeps 84 % of the first classes, of which the model itself has 2 % right."""
    ask = VerifyRequest("ort", "int8")
    reported = row(0.992, 0.84, 0.95)
    for decided in (NEIGHBOURS, COSINE):
        check_agreement([reported], ask, Decisions(decided, "chance"))
    with pytest.raises(ParityError, match=r"84\.0%.* 95%"):
        check_agreement([reported], ask, Decisions(TOP1, "good classes"))
    with pytest.raises(ParityError, match=r"20\.0%"):
        check_agreement([row(0.992, 0.99, 0.2)], ask, Decisions(NEIGHBOURS, "chance"))
    with pytest.raises(ParityError, match=r"0\.980000"):
        check_agreement([row(0.98, 1.0, None)], ask, Decisions(NEIGHBOURS, "chance"))
