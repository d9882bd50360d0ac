"""Train the scorer end to end: match the pruned embedding to the unpruned one (straight-through top-k)."""

from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn import functional

from prtool.trainer.loop import Examples, Objective
from prtool.trainer.models.predictor import CheckerboardScorer, PatchScorer
from prtool.trainer.models.pruned import gather, select
from prtool.trainer.models.tower import VisionTower, attention_with_gradients
from prtool.trainer.settings import DistillConfig

_JUDGE_BATCH = 32


class DistillObjective(Objective):
    """1 - cosine between the embedding of the selected patches and the unpruned one, with gradients to the scores (ours, not the paper's).

    The k best patches and the runner-ups behind them form one sequence. A runner-up has little influence: in every attention
    the weight of its key is `floor` times that of a kept patch. The gate is this hard step in the forward pass and the sigmoid of
    the distance to the threshold in the backward pass (straight-through), so a runner-up that would improve the embedding gains
    score, and a kept patch that contributes nothing to the others loses it. The rest is dropped, so a step is as short as a
    pruned sequence.

    Args:
        tower: the frozen encoder.
        location: 1-based block that the tokens enter.
        train, val: images, with the unpruned embeddings as targets.
        config: how.
        checkerboard: the bonus with which patches will be selected (see `CheckerboardScorer`); None for the scorer of a later
            location, which learns on random parts of the patches.
    """

    def __init__(self, tower: VisionTower, location: int, train: Examples, val: Examples, config: DistillConfig, checkerboard: float | None) -> None:
        bonus, subsets = checkerboard or 0.0, checkerboard is None
        super().__init__(train, val, location, asdict(config), bonus, subsets)
        self._tower, self._location, self._config = tower, location, config
        self._checkerboard, self._subsets = bonus, subsets

    def loss(self, scorer: PatchScorer, chosen: Tensor, generator: torch.Generator) -> Tensor:  # noqa: D102 - as declared
        config = self._config
        tokens = self._train.features.batch(chosen.tolist()).to(next(scorer.parameters()).device)
        if self._subsets:
            tokens = some_patches(tokens, scorer.prefix_tokens, generator)
        patches = tokens.shape[1] - scorer.prefix_tokens
        share = config.keep_low + (config.keep_high - config.keep_low) * float(torch.rand((), generator=generator))
        scores = self._with_bonus(scorer, patches)(tokens)
        uniform = torch.rand(scores.shape, generator=generator).clamp(1e-6, 1.0 - 1e-6).to(scores.device)
        scores = scores - config.noise * (-uniform.log()).log()
        found = self._embedding(scorer, tokens, scores, max(1, round(share * patches)))
        return 1.0 - (found * self._train.targets[chosen].to(found.device)).sum(dim=-1).mean()

    @torch.no_grad()
    def judge(self, scorer: PatchScorer) -> float:
        """Mean cosine of the validation images at the middle of the range of keeps, with patches physically dropped."""
        device, total = next(scorer.parameters()).device, 0.0
        share = (self._config.keep_low + self._config.keep_high) / 2
        for part in torch.split(torch.arange(len(self._val.targets)), _JUDGE_BATCH):
            tokens = self._val.features.batch(part.tolist()).to(device)
            scores = self._with_bonus(scorer, tokens.shape[1] - scorer.prefix_tokens)(tokens)
            kept = gather(tokens, select(scores, max(1, round(share * scores.shape[1]))), scorer.prefix_tokens)
            found = functional.normalize(self._tower.run_post(kept, self._location), dim=-1)
            total += float((found.cpu() * self._val.targets[part]).sum())
        return total / len(self._val.targets)

    def _with_bonus(self, scorer: PatchScorer, patches: int) -> CheckerboardScorer:
        """The scorer as it will select patches; a part of the patches has no grid, and gets no bonus."""
        bonus = self._checkerboard if patches == scorer.patches else 0.0
        grid = self._tower.grid if patches == scorer.patches else (1, patches)
        return CheckerboardScorer(scorer, grid, bonus).to(next(scorer.parameters()).device)

    def _embedding(self, scorer: PatchScorer, tokens: Tensor, scores: Tensor, k: int) -> Tensor:
        """(batch, E), L2-normalised, with the k best patches at gate 1 and their runner-ups at the floor."""
        config, prefix, patches = self._config, scorer.prefix_tokens, scores.shape[1]
        k = min(k, patches - 1)
        considered = select(scores.detach(), min(patches, k + max(1, round(config.runner_ups * patches))))
        near = scores.gather(1, considered)
        threshold = near[:, k - 1 : k + 1].detach().mean(dim=1, keepdim=True)
        soft = torch.sigmoid((near - threshold) / config.temperature)
        hard = (torch.arange(near.shape[1], device=near.device) < k).float()
        gates = config.floor + (1.0 - config.floor) * (hard + soft - soft.detach())
        mask = functional.pad(gates.log(), (prefix, 0))
        sequence = gather(tokens, considered, prefix)
        with attention_with_gradients(tokens.device):
            for block in range(self._location - 1, self._tower.depth):
                sequence = self._tower.block(block, sequence, mask)
        if not self._tower.head_reads:
            # A head that pools over all tokens has no mask: runner-ups, which are behind the kept patches, must not reach it.
            sequence = sequence[:, : prefix + k]
        return functional.normalize(self._tower.head(sequence), dim=-1)


def some_patches(tokens: Tensor, prefix_tokens: int, generator: torch.Generator) -> Tensor:
    """The same number of random patches of each image, from a half of them to all: (batch, prefix + patches, D)."""
    batch, patches = tokens.shape[0], tokens.shape[1] - prefix_tokens
    count = int(torch.randint(max(2, patches // 2), patches + 1, (), generator=generator))
    return gather(tokens, torch.rand(batch, patches, generator=generator).argsort(dim=1)[:, :count].to(tokens.device), prefix_tokens)
