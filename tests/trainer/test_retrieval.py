"""Overlap of nearest images and recall of texts, against plain loops, by hand, and through an evaluation with and without labels."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoder import class_embeddings, noise_images, tiny_encoder
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import DataError, ShapeError
from prtool.runtime.images.preprocess import prepare
from prtool.spec import Keep
from prtool.trainer.data.images import NO_LABEL, ImageSet, equally_spaced
from prtool.trainer.evaluation import retrieval
from prtool.trainer.evaluation.evaluate import EvalConfig, Pruner, evaluate
from prtool.trainer.evaluation.retrieval import Neighbours, Texts
from prtool.trainer.models.dual_encoder import DualEncoder, TextTower


def seeded(count: int, width: int, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def nearest(queries: np.ndarray, index: np.ndarray, image: int, count: int) -> list[int]:
    """One image's nearest by a plain sort; on ties the lower index."""
    return sorted((other for other in range(len(index)) if other != image), key=lambda other: (-float(queries[image] @ index[other]), other))[:count]


@pytest.mark.parametrize("images", [4, 20, 70])
@pytest.mark.parametrize("table", [1 << 22, 64])
def test_the_overlap_is_that_of_a_plain_loop(images: int, table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the similarities are computed in parts."""
    monkeypatch.setattr(retrieval, "_TABLE", table)
    full, found = seeded(images, 12), seeded(images, 12, 1)
    found = functional.normalize(full + 0.5 * found, dim=-1)
    count = min(10, (images - 1) // 3)
    a, b = full.double().numpy(), found.double().numpy()
    right = [set(nearest(a, a, image, count)) for image in range(images)]
    own = np.mean([len(right[image] & set(nearest(b, b, image, count))) / count for image in range(images)])
    cross = np.mean([len(right[image] & set(nearest(b, a, image, count))) / count for image in range(images)])
    neighbours = Neighbours(full)
    assert neighbours.own(found) == pytest.approx(own)
    assert neighbours.cross(found) == pytest.approx(cross)
    assert neighbours.own(full) == neighbours.cross(2.0 * full) == 1.0


def at(*degrees: float) -> Tensor:
    return torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in degrees])


def test_an_overlap_by_hand() -> None:
    """Four points at 0, 10, 30 and 70 degrees, of which the third moves to -5: its nearest was the second and is the first."""
    full, found = at(0, 10, 30, 70), at(0, 10, -5, 70)
    # Before: 0 -> 10, 10 -> 0, 30 -> 10, 70 -> 30. Own: 0 -> -5, 10 -> 0, -5 -> 0, 70 -> 10. Cross: -5 -> 0, all others as before.
    assert Neighbours(full).own(found) == 0.25
    assert Neighbours(full).cross(found) == 0.75


def test_two_images_have_no_neighbours() -> None:
    neighbours = Neighbours(seeded(2, 8))
    assert (neighbours.count, neighbours.own(seeded(2, 8, 1)), neighbours.cross(seeded(2, 8, 1))) == (0, None, None)
    with pytest.raises(ShapeError, match="3 embeddings"):
        neighbours.own(seeded(3, 8))


def test_twins_count_for_each_other() -> None:
    """Every image is there three times; whichever of the copies a search returns, the unpruned embeddings find all of their neighbours."""
    full = seeded(9, 16).repeat(3, 1)
    neighbours = Neighbours(full)
    assert neighbours.count == 8
    assert neighbours.own(full) == neighbours.cross(full) == 1.0
    assert neighbours.own(full + 1e-7 * seeded(27, 16, 2)) == 1.0
    assert neighbours.own(seeded(27, 16, 3)) < 0.9


def test_an_encoder_that_has_collapsed_has_no_overlap_and_no_recall() -> None:
    """Equal embeddings of all images are ties, and ties must not look like hits."""
    same = torch.ones(100, 16) / 4
    assert Neighbours(seeded(100, 16)).own(same) < 0.3
    subjects = torch.arange(100) // 10
    texts = Texts("class prompts", seeded(10, 16, 1), torch.arange(10), subjects)
    assert texts.text_to_image(same) == (10.0, 10.0, 10.0), "the lowest index, an image of class 0, comes first for every prompt"
    assert texts.image_to_text(same) == (10.0, 50.0, 100.0)


def recall(queries: np.ndarray, index: np.ndarray, wanted: list[int], subjects: list[int], k: int) -> float:
    hits = []
    for query, subject in zip(queries, wanted, strict=True):
        if subject in subjects:
            order = sorted(range(len(index)), key=lambda other: (-float(query @ index[other]), other))[:k]
            hits.append(any(subjects[place] == subject for place in order))
    return 100 * sum(hits) / len(hits)


@pytest.mark.parametrize("table", [1 << 22, 64])
def test_recall_is_that_of_a_plain_loop(table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 3 has no image, so its prompt is left out; image 0's subject has no text, so that image is."""
    monkeypatch.setattr(retrieval, "_TABLE", table)
    images, prompts = seeded(40, 8), seeded(12, 8, 1)
    labels = [99, *(label if label != 3 else 4 for label in torch.randint(0, 12, (39,), generator=torch.Generator().manual_seed(2)).tolist())]
    texts = Texts("class prompts", prompts, torch.arange(12), torch.tensor(labels))
    a, b, subjects = images.double().numpy(), prompts.double().numpy(), list(range(12))
    assert 3 not in labels
    assert texts.text_to_image(images) == pytest.approx([recall(b, a, subjects, labels, k) for k in (1, 5, 10)])
    assert texts.image_to_text(images) == pytest.approx([recall(a, b, labels, subjects, k) for k in (1, 5, 10)])


def test_recall_by_hand() -> None:
    """Two images on the axes. Image 0 has two captions: one near it, one near image 1; image 1 has one caption, near image 0."""
    images = torch.eye(2)
    captions = functional.normalize(torch.tensor([[1.0, 0.1], [0.3, 1.0], [1.0, 0.4]]), dim=-1)
    texts = Texts("captions", captions, torch.tensor([0, 0, 1]), torch.arange(2))
    assert texts.text_to_image(images) == pytest.approx((100 / 3, 100.0, 100.0))
    assert texts.image_to_text(images) == (50.0, 100.0, 100.0)


def test_images_at_equal_distances() -> None:
    assert equally_spaced(10, 4) == [0, 2, 5, 7]
    assert equally_spaced(3, 10) == equally_spaced(3, 0) == [0, 1, 2]


class Letters(nn.Module):
    """A text side that reads a text as the sum of vectors of its ids."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = seeded(256, width, 7)

    def encode_text(self, ids: Tensor) -> Tensor:
        return (self.table[ids] * (ids > 0).unsqueeze(-1)).sum(dim=1)


def bytes_of(texts: list[str], length: int = 12) -> Tensor:
    rows = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        codes = text.encode()[:length]
        row[: len(codes)] = torch.tensor(list(codes), dtype=torch.int64)
    return rows


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    tiny = tiny_encoder("cls")
    return dataclasses.replace(tiny, text=TextTower(Letters(tiny.tower.embed_dim)), tokenizer=bytes_of, context_length=12)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return noise_images(tmp_path_factory.mktemp("images"), 13)


@pytest.fixture(scope="module")
def full(model: DualEncoder, images: ImageSet) -> Tensor:
    pixels = torch.stack([torch.from_numpy(prepare(images.source(index), model.preprocess)) for index in range(len(images))])
    with torch.no_grad():
        return functional.normalize(model.tower(pixels), dim=-1)


def asked(**given: object) -> EvalConfig:
    return EvalConfig(keeps=(Keep.ratio(0.5),), methods=("random",), batch=4, **given)  # type: ignore[arg-type]


def pruner(model: DualEncoder) -> Pruner:
    return Pruner(model.tower.prune_spec((2,)))


def test_captions_decide_recall_in_an_evaluation(model: DualEncoder, images: ImageSet, full: Tensor) -> None:
    """The unpruned row against a plain loop over the same texts; a caption that the tokenizer cuts is named."""
    captions = tuple((f"noise {index}", f"{index} things") if index % 2 else (f"a very long text {index}",) for index in range(len(images)))
    captioned = dataclasses.replace(images, captions=captions)
    report = evaluate(model, pruner(model), captioned, class_embeddings(model), asked())
    lines, owners = [text for texts in captions for text in texts], [index for index, texts in enumerate(captions) for _ in texts]
    vectors, everyone = model.text(bytes_of(lines)).double().numpy(), list(range(len(images)))
    wanted = [recall(vectors, full.double().numpy(), owners, everyone, k) for k in (1, 5, 10)]
    assert report.unpruned.text_to_image == pytest.approx(wanted)
    assert report.unpruned.image_to_text == pytest.approx([recall(full.double().numpy(), vectors, everyone, owners, k) for k in (1, 5, 10)])
    assert (report.texts, report.retrieval_images) == ("captions", 13)
    assert any("7 of 19 captions" in note and "a very long text 0" in note for note in report.notes)


def test_class_prompts_decide_recall_where_there_are_labels(model: DualEncoder, images: ImageSet) -> None:
    report = evaluate(model, pruner(model), images, class_embeddings(model), asked())
    for row in report.rows:
        assert row.image_to_text is not None
        assert row.image_to_text[0] == row.accuracy
        assert row.image_to_text[1:] == (100.0, 100.0), "there are five classes"
    assert report.texts == "class prompts"
    few = evaluate(model, pruner(model), images.subset([0, 2]), class_embeddings(model), asked())
    assert any("2 images and 5 class prompts, 2 of them" in note for note in few.notes)


def test_images_without_labels_have_overlap_and_cosine(model: DualEncoder, images: ImageSet) -> None:
    plain = dataclasses.replace(images, labels=(NO_LABEL,) * len(images), classnames=())
    report = evaluate(model, pruner(model), plain, None, asked())
    whole = evaluate(model, pruner(model), images, class_embeddings(model), asked())
    for row, other in zip(report.rows, whole.rows, strict=True):
        assert (row.accuracy, row.lost, row.won, row.drop, row.text_to_image, row.image_to_text) == (None,) * 6
        assert (row.cosine, row.overlap_own, row.overlap_cross) == (other.cosine, other.overlap_own, other.overlap_cross)
    columns, rows = report.table()
    assert {row[columns.index("accuracy %")] for row in rows} == {"-"}
    assert not any("text" in column for column in columns)
    with pytest.raises(DataError, match="13"):
        evaluate(model, pruner(model), dataclasses.replace(plain, classnames=images.classnames), class_embeddings(model), asked())


def test_overlap_is_that_of_the_images_drawn(model: DualEncoder, images: ImageSet, full: Tensor) -> None:
    """Of 13 images, 7 at equal distances; the others change nothing."""
    config = dataclasses.replace(asked(retrieval_images=7), methods=("cls-attention",))
    report = evaluate(model, pruner(model), images, class_embeddings(model), config)
    part = evaluate(model, pruner(model), images.subset(equally_spaced(13, 7)), class_embeddings(model), config)
    assert (report.retrieval_images, report.rows[1].images, part.rows[1].images) == (7, 13, 7)
    assert report.rows[1].overlap_own == part.rows[1].overlap_own
    assert report.rows[1].text_to_image == part.rows[1].text_to_image
    assert any("7 of the 13 images" in note for note in report.notes)


def test_two_images_can_be_evaluated(model: DualEncoder, tmp_path: Path) -> None:
    report = evaluate(model, pruner(model), noise_images(tmp_path, 2), class_embeddings(model), asked())
    assert [(row.overlap_own, row.overlap_cross) for row in report.rows] == [(None, None)] * 2
