"""Methods that exist in PyTorch only, with the recovery that ours have: what recovery gives to any choice of patches."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.reducers import Reducer, Workshop
from prtool.errors import ConfigError
from prtool.spec import RANK, PruneSpec
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.load import load_split, templates_for
from prtool.trainer.evaluation.baselines.base import Entered
from prtool.trainer.evaluation.baselines.evit import EVit
from prtool.trainer.evaluation.baselines.random_ import Random
from prtool.trainer.evaluation.evaluate import EvalConfig, evaluate
from prtool.trainer.evaluation.pruner import Pruner
from prtool.trainer.evaluation.report import EvalReport
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.models.reduced import ReducedEncoder
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.recovery.train import RecoverTask, recover
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.settings import RecoverConfig
from prtool.trainer.train import run_images

RECOVERABLE = (EVit.name, Random.name)
"""Methods that can also be recovered."""


class RandomScorer(nn.Module):
    """Another random order at every call."""

    def __init__(self, seed: int, prefix_tokens: int) -> None:
        super().__init__()
        self._draw, self._prefix = torch.Generator().manual_seed(seed), prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, prefix + patches, D) -> (batch, patches)."""
        return torch.rand(tokens.shape[0], tokens.shape[1] - self._prefix, generator=self._draw).to(tokens.device)


class EVitEncoder(nn.Module):
    """EViT as an encoder that recovery can correct."""

    def __init__(self, tower: VisionTower, spec: PruneSpec) -> None:
        super().__init__()
        self.tower, self.spec, self._method = tower, spec, EVit(tower)

    def encode_from(self, tokens: Tensor, block: int, counts: Sequence[int]) -> Tensor:
        """The embedding (batch, E), L2-normalised, from the tokens (batch, prefix + N, D) that enter the location, which is `block`."""
        if block != self.spec.locations[0]:
            raise ValueError(f"block {block} is not the location {self.spec.locations[0]}")
        return self._method.encode(Entered(tokens, tokens, (), self.tower, self.spec), tuple(counts))


def recovered_model(workshop: Workshop, method: str, data: str | None) -> tuple[DualEncoder, PruneSpec]:
    """The model with the blocks corrected for one method of `RECOVERABLE`, with Patch Ranking's images, steps and settings."""
    run = workshop.run(Reducer(RANK), data)
    checkpoint = Checkpoint.load(run)
    model, spec, images = checkpoint.load_model(), checkpoint.prune, run_images(TrainConfig.from_json(checkpoint.config))
    if method not in RECOVERABLE or images is None:
        raise ConfigError(f"method {method}+ cannot be recovered; give {' or '.join(RECOVERABLE)}, and data")
    given = {name.removeprefix("recover."): value for name, value in workshop.settings.items() if name.startswith("recover.")}
    config = RecoverConfig(**{"seed": workshop.seed, **given})  # type: ignore[arg-type]
    scorers = [RandomScorer(workshop.seed, spec.prefix_tokens) for _ in spec.locations]
    encoder = EVitEncoder(model.tower, spec) if method == EVit.name else PrunedEncoder(model.tower, scorers, spec)
    folder = workshop.folder / "runs" / f"{run.name}-{method}"
    task = RecoverTask(model, cast(ReducedEncoder, encoder), images.train, images.val, workshop.folder / "runs" / "recovery")
    made = recover(task, config, folder / "recovery.safetensors", workshop.progress)
    tower = model.tower if made.recovery is None else made.recovery.folded(model.tower)
    return replace(model, tower=tower), spec


def evaluate_recovered(workshop: Workshop, method: str, data: str | None, address: str, config: EvalConfig) -> EvalReport:
    """What `evaluate_run` gives for a method, with the corrections that it learned from `data`, or from the workshop's images."""
    model, spec = recovered_model(workshop, method, data)
    images = load_split(address, config.split)
    classes = model.class_embeddings(images.classnames, config.templates or templates_for(address))
    # A ledger would take the corrected tower for the frozen one.
    return evaluate(model, Pruner(spec), images, classes, replace(config, methods=(method,), store=None), workshop.progress)
