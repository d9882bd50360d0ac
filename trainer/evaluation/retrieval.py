"""Retrieval: whether a search among images, or between images and texts, finds the same with shortened embeddings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from prtool.errors import ShapeError
from prtool.text_safety import printable
from prtool.trainer.data.images import NO_LABEL, ImageSet
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.loading.tokenizer import cut_prompts

NEAREST = 10
"""Neighbours of an image that are compared."""
VOTERS, _TEMPERATURE = 20, 0.07
"""Neighbours that vote on the class of an image, and how steeply their votes fall with the distance."""
RECALL_AT = (1, 5, 10)
"""The k of recall@k."""
CLASS_PROMPTS, CAPTIONS = "class prompts", "captions"
_SAME = 1e-6
"""Similarities that differ by less are equal: twins in a set have no order."""
_TABLE = 1 << 22
"""Similarities that are held at once, of 4 bytes each."""
_BATCH = 256


class Neighbours:
    """The nearest images of each image by the unpruned embeddings, and what share of them other embeddings find.

    A neighbour that is found counts where its unpruned similarity reaches that of the last of the nearest, so twins count for each
    other (as in ANN-Benchmarks, Aumüller et al. 2020). An image is not its own neighbour.

    Args:
        unpruned: (images, E) float, L2-normalised.
        most: neighbours that are compared; with few images a third of the others.

    Attributes:
        count: neighbours that are compared; 0 with fewer than four images, which have no overlap.
    """

    def __init__(self, unpruned: Tensor, most: int = NEAREST) -> None:
        self.count = min(most, (len(unpruned) - 1) // 3)
        self._index = _unit(unpruned)
        if self.count:
            found = _nearest(self._index, self._index, self.count)
            self._least = self._similarities(found).min(dim=1).values - _SAME

    def own(self, embeddings: Tensor) -> float | None:
        """The overlap, 0 to 1, where the embeddings (images, E) are both index and queries; None without neighbours."""
        return self._overlap(embeddings, embeddings)

    def cross(self, embeddings: Tensor) -> float | None:
        """The overlap, 0 to 1, where the embeddings (images, E) ask the index of the unpruned ones; None without neighbours."""
        return self._overlap(embeddings, self._index)

    def classified(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Which images (images,) bool get their own label from the unpruned embeddings of the others nearest to theirs.

        The `VOTERS` nearest vote with weight exp(cosine / 0.07), as in DINO (Caron et al. 2021, section 4.1.1, after Wu et al. 2018);
        ties go to the lower label.

        Args:
            embeddings: (images, E) float; they ask, and the index is that of the unpruned ones.
            labels: (images,) int64.

        Raises:
            ShapeError: there are not as many embeddings as images, or fewer than two.
        """
        if len(embeddings) != len(self._index) or len(embeddings) < 2:
            raise ShapeError(f"{len(embeddings)} embeddings of {len(self._index)} images; give one for each of at least two images")
        queries, count = _unit(embeddings), min(VOTERS, len(self._index) - 1)
        found = _nearest(queries, self._index, count)
        votes = torch.zeros(len(queries), int(labels.max()) + 1)
        for column in found.T:
            cosine = (queries * self._index[column]).sum(dim=1)
            votes.scatter_add_(1, labels[column, None], torch.exp((cosine - 1.0) / _TEMPERATURE)[:, None])
        return votes.argmax(dim=1) == labels

    def _overlap(self, queries: Tensor, index: Tensor) -> float | None:
        if len(queries) != len(self._index):
            raise ShapeError(f"{len(queries)} embeddings, but the neighbours are those of {len(self._index)} images; give one for each image")
        if not self.count:
            return None
        found = _nearest(_unit(queries), _unit(index), self.count)
        return float((self._similarities(found) >= self._least.unsqueeze(1)).double().mean())

    def _similarities(self, found: Tensor) -> Tensor:
        """The unpruned similarity of each image to its found ones: (images, count) -> (images, count)."""
        return torch.stack([(self._index * self._index[column]).sum(dim=1) for column in found.T], dim=1)


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall@1, 5 and 10 in percent, as `Texts` computes it."""

    text_to_image: tuple[float, ...]
    image_to_text: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Texts, and which images they are of: class prompts or captions.

    Attributes:
        kind: "class prompts" or "captions".
        embeddings: (texts, E) float, L2-normalised.
        subjects: (texts,) int64; a text is of the images that have the same subject: a class, or the image itself.
        image_subjects: (images,) int64.
        note: what a reader of the recall should know; "" for nothing.
    """

    kind: str
    embeddings: Tensor
    subjects: Tensor
    image_subjects: Tensor
    note: str = ""

    @classmethod
    def of(cls, model: DualEncoder, images: ImageSet, classes: Tensor | None) -> "Texts | None":
        """The captions of the images where they have some, else their classes' prompts (classes, E), else None."""
        if any(images.captions) and model.has_text:
            return cls._captions(model, images)
        if classes is None or NO_LABEL in images.labels:
            return None
        return cls.of_classes(classes, images.labels)

    @classmethod
    def of_classes(cls, classes: Tensor, labels: Sequence[int]) -> "Texts":
        """The prompts of all classes (classes, E), for images with these labels."""
        return cls(CLASS_PROMPTS, classes, torch.arange(len(classes)), torch.tensor(labels))

    @classmethod
    @torch.inference_mode()
    def _captions(cls, model: DualEncoder, images: ImageSet) -> "Texts":
        texts = [text for captions in images.captions for text in captions]
        subjects = [number for number, captions in enumerate(images.captions) for _ in captions]
        device = model.tower.device
        parts = [model.text(model.tokenizer(texts[start : start + _BATCH]).to(device)) for start in range(0, len(texts), _BATCH)]
        cut = cut_prompts(model.tokenizer, texts)
        note = f"{int(cut.sum())} of {len(texts)} captions are longer than the {model.context_length} tokens that the model reads and were cut, "
        note += f"the first '{printable(texts[int(cut.int().argmax())], 80)}'"
        return cls(CAPTIONS, torch.cat(parts).float(), torch.tensor(subjects), torch.arange(len(images)), note if bool(cut.any()) else "")

    def with_classes(self, classes: Tensor) -> "Texts":
        """The same with other class embeddings (classes, E); captions stay as they are."""
        return replace(self, embeddings=classes) if self.kind == CLASS_PROMPTS else self

    @property
    def answered(self) -> int:
        """How many texts have an image of their subject."""
        return int(torch.isin(self.subjects, self.image_subjects).sum())

    def recall(self, embeddings: Tensor) -> Recall:
        """Both directions, of (images, E) float, L2-normalised."""
        return Recall(self.text_to_image(embeddings), self.image_to_text(embeddings))

    def text_to_image(self, embeddings: Tensor) -> tuple[float, ...]:
        """Recall@1, 5 and 10 in percent: share of the texts with an image of their subject among the k most similar images.

        Texts of which there is no image are left out. Ties go to the lower index.

        Args:
            embeddings: (images, E) float, L2-normalised.
        """
        return _recall(self.embeddings.to(embeddings), embeddings, self.subjects, self.image_subjects)

    def image_to_text(self, embeddings: Tensor) -> tuple[float, ...]:
        """Recall@1, 5 and 10 in percent: share of the images with a text of their subject among the k most similar texts.

        Images of which there is no text are left out. Ties go to the lower index, so that @1 of class prompts is the accuracy.

        Args:
            embeddings: (images, E) float, L2-normalised.
        """
        return _recall(embeddings, self.embeddings.to(embeddings), self.image_subjects, self.subjects)


def _unit(embeddings: Tensor) -> Tensor:
    return functional.normalize(embeddings.float(), dim=-1)


def _nearest(queries: Tensor, index: Tensor, count: int) -> Tensor:
    """The `count` most similar of each query's index, the query's own place left out: (queries, count) int64."""
    found = []
    for first, chunk in _chunks(queries, len(index)):
        similar = chunk @ index.T
        places = torch.arange(len(chunk))
        similar[places, first + places] = -torch.inf
        found.append(similar.topk(count, dim=1).indices)
    return torch.cat(found)


def _recall(queries: Tensor, index: Tensor, wanted: Tensor, subjects: Tensor) -> tuple[float, ...]:
    """Of the queries (queries, E) whose subject `wanted` (queries,) is among the `subjects` (index,) of the index (index, E)."""
    answered = torch.isin(wanted, subjects)
    queries, wanted, ranks, order = queries[answered], wanted[answered], [], torch.arange(len(index))
    for first, chunk in _chunks(queries, len(index)):
        similar = chunk @ index.T
        right = wanted[first : first + len(chunk), None] == subjects[None]
        best, place = similar.masked_fill(~right, -torch.inf).max(dim=1, keepdim=True)
        ranks.append(((similar > best) | ((similar == best) & (order < place))).sum(dim=1))
    return tuple(100 * float((torch.cat(ranks) < k).double().mean()) for k in RECALL_AT)


def _chunks(queries: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    """Parts of the queries whose similarities to `width` others fit into the memory that is allowed, with the place of the first."""
    rows = max(1, _TABLE // width)
    for first in range(0, len(queries), rows):
        yield first, queries[first : first + rows]
