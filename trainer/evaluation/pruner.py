"""Pruner: what an evaluation takes from a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from prtool.spec import PruneSpec
from prtool.trainer.config import TrainConfig
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.models.reduced import ReducedEncoder
from prtool.trainer.runs.checkpoint import Checkpoint, without_tokens
from prtool.trainer.settings import GoldenConfig


@dataclass(frozen=True, slots=True)
class Pruner:
    """What decides at the locations.

    Attributes:
        spec: where tokens drop, without learnable tokens.
        scorers: the predictors, one for each location, on the model's device; () where only other methods are compared.
        trained: False for a freshly initialised predictor, whose choice of patches means nothing.
        golden: how the oracle searches, at the spec's first location.
        cache: folder of golden rankings, or None to keep none.
        tuned: the encoder with learnable tokens, or None.
        tuned_classes: (classes, E) float32, L2-normalised class embeddings with the learned context, or None.
        recovered: the run's encoder with its corrections, without learnable tokens, or None.
    """

    spec: PruneSpec
    scorers: tuple[nn.Module, ...] = ()
    trained: bool = True
    golden: GoldenConfig = field(default_factory=GoldenConfig)
    cache: Path | None = None
    tuned: PrunedEncoder | None = None
    tuned_classes: Tensor | None = None
    recovered: ReducedEncoder | None = None

    @classmethod
    def of_run(cls, checkpoint: Checkpoint, run: Path, split: str, device: torch.device) -> "Pruner":
        """The predictors and golden search of a run; rankings of images lie in the run's folder, next to those it trained on."""
        settings = TrainConfig.from_json(checkpoint.config).golden
        scorers = tuple(scorer.to(device).eval() for scorer in checkpoint.scorers())
        return cls(without_tokens(checkpoint.prune), scorers, checkpoint.scorer_trained, settings, run / "golden" / split)

    def with_recovery(self, checkpoint: Checkpoint, model: DualEncoder) -> "Pruner":
        """The same with the run's corrections, where it has some."""
        if checkpoint.recovery.kept is None:
            return self
        return replace(self, recovered=checkpoint.pruned_encoder(model.tower, with_tokens=False))

    def with_tokens(self, checkpoint: Checkpoint, model: DualEncoder, classnames: Sequence[str]) -> "Pruner":
        """The same with the run's learnable tokens, where it has some, and their embeddings of the classes, where there are classes."""
        tokens = checkpoint.tokens
        if not tokens.visual and not tokens.text:
            return self
        classes = checkpoint.class_embeddings(model, classnames) if tokens.text and classnames else None
        return replace(self, tuned=checkpoint.ranking_encoder(model.tower), tuned_classes=classes)
