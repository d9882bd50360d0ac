"""Whether a model's classes are meaningful on some images, so that they can measure what a reduced precision changes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.reference import unpruned
from prtool.runtime.verify import Gate
from prtool.trainer.data.images import NO_LABEL
from prtool.trainer.evaluation.retrieval import Neighbours

TOP1, NEIGHBOURS, COSINE = "top1", "neighbours", "mean_cosine"
_BATCH = 8
_MIN_GAIN = 0.1
_CHANCE_ERRORS = 3.0
_NOISE_DRAWS = 8


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a reduced precision must reach in addition to the mean cosine, and why.

    Attributes:
        decided_by: "top1" (images keep their first class), "neighbours" (images keep their nearest images) or "mean_cosine" (nothing else).
        why: in one line.
    """

    decided_by: str
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Unpruned:
    """The unpruned model on some images.

    Attributes:
        embeddings: (images, E) float32, L2-normalised.
        classes: (classes, E) float32, L2-normalised; None without class names.
        labels: the class of each image, or -1; () for none known.
    """

    embeddings: Tensor
    classes: Tensor | None
    labels: Sequence[int] = ()

    @classmethod
    def of(cls, source: ExportSource, pixels: Pixels, labels: Sequence[int] = ()) -> "Unpruned":
        """Runs the unpruned tower on images of its native size."""
        return cls(torch.cat([unpruned(source.model.native, chunk.full) for chunk in pixels.split(_BATCH)]), source.classes(), labels)

    def judged(self, gate: Gate) -> Decisions:
        """What decides about a precision in addition to the mean cosine: first classes, else nearest images, else nothing.

        First classes must be meaningful: with labels, the accuracy is above chance by 10 points and by three standard errors.
        And isotropic noise at the gate's mean cosine must leave at least the gate's share of the classes, or of the neighbours,
        unchanged: else the two gates would contradict each other.
        """
        classes = self.classes
        if classes is None or len(classes) < 2:
            return self._by_neighbours(gate, "the run has no class names")
        first = (self.embeddings @ classes.T).argmax(1)
        chance = self._no_better_than_chance(first, len(classes))
        if chance:
            return self._by_neighbours(gate, chance)
        kept = self._under_noise(gate, lambda found: float(((found @ classes.T).argmax(1) == first).double().mean()))
        why = f"noise at a cosine of {gate.mean_cosine} leaves {kept:.1%} of the first classes"
        return Decisions(TOP1, why) if kept >= gate.top1 else self._by_neighbours(gate, f"{why}, whose margins are too small")

    def _by_neighbours(self, gate: Gate, reason: str) -> Decisions:
        neighbours = Neighbours(self.embeddings)
        if not neighbours.count:
            return Decisions(COSINE, f"{reason}; the images are too few to have neighbours")
        kept = self._under_noise(gate, lambda found: neighbours.own(found) or 0.0)
        if kept >= gate.neighbours:
            return Decisions(NEIGHBOURS, reason)
        return Decisions(COSINE, f"{reason}; noise at a cosine of {gate.mean_cosine} leaves {kept:.1%} of the neighbours: they are too similar")

    def _no_better_than_chance(self, first: Tensor, classes: int) -> str:
        labels = torch.tensor(list(self.labels) or [NO_LABEL] * len(first))
        right = (first == labels)[labels != NO_LABEL]
        if not len(right):
            return ""
        accuracy, chance = float(right.double().mean()), 1.0 / classes
        least = chance + max(_MIN_GAIN, _CHANCE_ERRORS * math.sqrt(chance * (1.0 - chance) / len(right)))
        if accuracy >= least:
            return ""
        return f"the unpruned model has {accuracy:.1%} of {len(right)} images right, and {classes} classes are meaningful from {least:.1%} on"

    def _under_noise(self, gate: Gate, measure: Callable[[Tensor], float]) -> float:
        """The mean of a measure over embeddings that seeded noise brings to the gate's mean cosine."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(_NOISE_DRAWS):
            noise = torch.randn(self.embeddings.shape, generator=generator)
            sideways = functional.normalize(noise - (noise * self.embeddings).sum(1, keepdim=True) * self.embeddings, dim=1)
            found.append(measure(gate.mean_cosine * self.embeddings + math.sqrt(1.0 - gate.mean_cosine**2) * sideways))
        return sum(found) / len(found)
