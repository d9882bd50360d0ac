"""A-ViT (Yin et al., AdaViT: Adaptive Tokens for Efficient Vision Transformer, CVPR 2022), training-free: patches halt one by one."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prtool.errors import ConfigError
from prtool.spec import Cost, PruneSpec
from prtool.trainer.evaluation.baselines.base import AdaptiveMethod, Counts, Entered, encoder_gmacs
from prtool.trainer.models.tower import VisionTower

EPSILON = 0.01
"""A patch halts when its scores add up to 1 - EPSILON (the paper's section 3.1)."""
GAMMA = 6.0
"""Slope of the halting score in standard deviations of the evidence, chosen with it on validation images (docs/method.md)."""
_CLOSE = 0.002
_MAX_TRIALS = 10
_BETAS = (-40.0, 20.0)
_SMALLEST_DEVIATION = 1e-12

Evidence = Callable[[Tensor, Tensor], Tensor]
"""Patches (patches, D) before and behind a block -> what speaks for halting each, (patches,)."""


def _redundancy(_before: Tensor, after: Tensor) -> Tensor:
    return functional.cosine_similarity(after, after.mean(dim=0, keepdim=True), dim=-1)


def _stillness(before: Tensor, after: Tensor) -> Tensor:
    moved: Tensor = torch.linalg.vector_norm(after - before, dim=-1)
    length: Tensor = torch.linalg.vector_norm(before, dim=-1)
    return -moved / length.clamp_min(_SMALLEST_DEVIATION)


def _faintness(_before: Tensor, after: Tensor) -> Tensor:
    return torch.neg(torch.linalg.vector_norm(after, dim=-1))


EVIDENCE: Mapping[str, Evidence] = {"redundancy": _redundancy, "stillness": _stillness, "faintness": _faintness}
"""What can speak for halting: cosine with the mean of the patches that are left; a small change in the block, relative to the
patch; a small norm. Each costs at most two products a channel and patch."""


class AVit(AdaptiveMethod):
    """Behind every block each patch gets a halting score; when its scores add up to 1 - EPSILON it drops out (equations 3 to 6).

    In the paper the score is h = sigmoid(gamma e + beta) with e the token's first channel, which training teaches to say
    when to stop, and the class tokens of all blocks are averaged. A frozen encoder was never taught so, and here, training-free:

    - e is one of `EVIDENCE`, brought to mean 0 and deviation 1 over the patches that are left of the image. gamma is GAMMA.
    - beta is fitted for each budget, so that the mean MACs of the calibration images are the budget's, the evidence included.
    - Class token and registers never halt, the last patch does not either, and the embedding is read behind the last block.

    Each image keeps as many patches as it needs, so images run one by one, without padding. It has no location: scores
    add up from block 1 on. `spent` has what each image cost.

    Args:
        tower: the frozen image encoder.
        evidence: a name of `EVIDENCE`.

    Raises:
        ConfigError: there is no such evidence.
    """

    name = "avit"

    def __init__(self, tower: VisionTower, evidence: str = "redundancy") -> None:
        if evidence not in EVIDENCE:
            raise ConfigError(f"avit evidence = {evidence!r}, but it must be one of {', '.join(EVIDENCE)}")
        if tower.rotary:
            raise ConfigError("method 'avit' is not made for an image tower with rotary positions; give others")
        self._width = tower.width
        self._evidence = EVIDENCE[evidence]
        self._fitted: dict[Counts, tuple[float, float]] = {}

    def calibrate(self, sample: Entered, budgets: Sequence[Counts]) -> None:
        """Fits beta for each budget on the images of `sample`; no labels are used.

        Raises:
            ConfigError: a budget is below what block 1 on all patches and the rest on one costs.
        """
        standard = torch.stack([self._unpruned(sample, image) for image in _each(sample)])
        tried: list[tuple[float, float]] = []
        for counts in budgets:
            if not sample.keeps_all(counts):
                self._fitted[counts] = self._fit(sample, standard, counts, tried)

    def encode(self, entered: Entered, counts: Counts) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, read behind the last block."""
        return entered.whole if entered.keeps_all(counts) else self._run(entered, counts)[0]

    def spent(self, entered: Entered, counts: Counts) -> Tensor:
        """What `encode` spends on each image: (batch,) float64, in 10^9 MAC, evidence included."""
        cost = entered.tower.cost()
        if entered.keeps_all(counts):
            full = encoder_gmacs(cost, entered.spec, counts)
            return torch.full((len(entered.indices),), full, dtype=torch.float64)
        return torch.tensor([image_gmacs(cost, lengths, entered.spec, self._width) for lengths in self._run(entered, counts)[1]], dtype=torch.float64)

    def gmacs(self, cost: Cost, spec: PruneSpec, counts: Counts) -> float:
        """Mean cost of one image of the calibration sample in 10^9 MAC."""
        return encoder_gmacs(cost, spec, counts) if counts[-1] == spec.patches else self._fit_of(counts)[1]

    def beta(self, counts: Counts) -> float:
        """The fitted beta of a budget below every patch.

        Raises:
            ConfigError: `calibrate` was not called with that budget.
        """
        return self._fit_of(counts)[0]

    def _run(self, entered: Entered, counts: Counts) -> tuple[Tensor, list[list[int]]]:
        beta = self.beta(counts)
        return entered.once((self, counts), lambda: self._halting(entered, beta))

    def _halting(self, entered: Entered, beta: float) -> tuple[Tensor, list[list[int]]]:
        """Embeddings, and the tokens of each image in each block."""
        found = [halting_forward(entered, image, self._evidence, beta) for image in _each(entered)]
        return torch.cat([embedding for embedding, _ in found]), [lengths for _, lengths in found]

    def _unpruned(self, entered: Entered, image: Tensor) -> Tensor:
        """The evidence behind each block where nothing halts: (depth, N) float64."""
        found, prefix = [], entered.spec.prefix_tokens
        for block in entered.tower.blocks:
            before, image = image, block(image)
            found.append(standardised(self._evidence(before[0, prefix:], image[0, prefix:])))
        return torch.stack(found)

    def _fit_of(self, counts: Counts) -> tuple[float, float]:
        if counts not in self._fitted:
            raise ConfigError(f"method 'avit' was calibrated for the counts {sorted(self._fitted)}, not for {counts}; calibrate it for those as well")
        return self._fitted[counts]

    def _fit(self, sample: Entered, standard: Tensor, counts: Counts, tried: list[tuple[float, float]]) -> tuple[float, float]:
        """Beta and the mean cost with it; `tried` has those of every budget so far, and takes the new ones.

        The evidence of the unpruned tower tells for any beta, without running a block, about how many patches would
        halt; what really halts corrects the aim, because patches see fewer others then.
        """
        cost, spec = sample.tower.cost(), sample.spec
        wanted = encoder_gmacs(cost, spec, counts)
        least = image_gmacs(cost, [spec.prefix_tokens + spec.patches] + [spec.prefix_tokens + 1] * (spec.depth - 1), spec, self._width)
        if least > wanted:
            raise ConfigError(f"avit cannot spend as little as {wanted:.3f} GMAC an image: one block on all patches makes {least:.3f}; keep more")
        for _ in range(_MAX_TRIALS):
            nearest = min(tried, key=lambda one: abs(one[1] - wanted), default=None)
            if nearest is not None and abs(nearest[1] / wanted - 1) < _CLOSE:
                break
            beta = self._next_beta(sample, standard, wanted, tried)
            lengths = self._halting(sample, beta)[1]
            tried.append((beta, sum(image_gmacs(cost, one, spec, self._width) for one in lengths) / len(lengths)))
        return min(tried, key=lambda one: abs(one[1] - wanted))

    def _next_beta(self, sample: Entered, standard: Tensor, wanted: float, tried: list[tuple[float, float]]) -> float:
        """Between the nearest betas that spent too much and too little; else what the evidence expects, corrected by the last trial."""
        dear = max((one for one in tried if one[1] > wanted), default=None)
        cheap = min((one for one in tried if one[1] <= wanted), default=None)
        if dear and cheap and dear[0] < cheap[0]:
            share = (dear[1] - wanted) / (dear[1] - cheap[1])
            # Not too near to either end, or one of them would never move.
            return dear[0] + min(max(share, 0.1), 0.9) * (cheap[0] - dear[0])

        def expected(beta: float) -> float:
            return _expected(sample, standard, beta, self._width)

        return _solve(expected, wanted * math.prod(expected(beta) / real for beta, real in tried[-1:]))


def halting_forward(entered: Entered, image: Tensor, evidence: Evidence, beta: float) -> tuple[Tensor, list[int]]:
    """One image through the tower while its patches halt.

    Args:
        entered: has tower and spec.
        image: (1, prefix + N, D) tokens that enter block 1.
        evidence: what speaks for halting a patch.
        beta: the higher, the sooner a patch halts.

    Returns:
        The embedding (1, E), L2-normalised, and the tokens in each block.
    """
    prefix, tower, tokens = entered.spec.prefix_tokens, entered.tower, image
    total = torch.zeros(entered.spec.patches, dtype=torch.float64, device=image.device)
    lengths = []
    for number, block in enumerate(tower.blocks):
        lengths.append(tokens.shape[1])
        before, tokens = tokens, block(tokens)
        standard = standardised(evidence(before[0, prefix:], tokens[0, prefix:]))
        total = total + torch.sigmoid(GAMMA * standard + beta)
        if number + 1 < tower.depth:
            staying = total < 1 - EPSILON
            staying[total.argmin()] = True
            tokens, total = torch.cat((tokens[:, :prefix], tokens[:, prefix:][:, staying]), dim=1), total[staying]
    return functional.normalize(tower.head(tokens), dim=-1), lengths


def standardised(evidence: Tensor) -> Tensor:
    """(patches,) float64 of mean 0 and deviation 1; zeros where all are equal."""
    centred = evidence.double() - evidence.double().mean()
    return centred / centred.square().mean().sqrt().clamp_min(_SMALLEST_DEVIATION)


def image_gmacs(cost: Cost, lengths: list[int], spec: PruneSpec, width: int) -> float:
    """Cost of one image in 10^9 MAC: the encoder with these tokens in each block, and two products a channel and patch for the evidence."""
    return cost.gmacs(lengths) + sum(2 * width * (length - spec.prefix_tokens) for length in lengths) / 1e9


def _each(entered: Entered) -> list[Tensor]:
    """The tokens that enter block 1 of one image after another, each (1, prefix + N, D)."""
    return [entered.embedded[number : number + 1] for number in range(len(entered.embedded))]


def _expected(sample: Entered, standard: Tensor, beta: float, width: int) -> float:
    """Mean cost of the sample in 10^9 MAC if the evidence (images, depth, N) did not change with what halts."""
    totals = torch.sigmoid(GAMMA * standard + beta).cumsum(dim=1)
    later = (totals[:, :-1] < 1 - EPSILON).sum(dim=2).clamp_min(1)
    patches = torch.cat((torch.full_like(later[:, :1], sample.spec.patches), later), dim=1)
    cost = sample.tower.cost()
    lengths = (patches + sample.spec.prefix_tokens).tolist()
    return sum(image_gmacs(cost, one, sample.spec, width) for one in lengths) / len(lengths)


def _solve(expected: Callable[[float], float], aim: float) -> float:
    """A beta at which `expected`, which falls with it in steps, is `aim` or less, and a little below more."""
    low, high = _BETAS
    # Beta to 0.0005: closer to a step, the last bit of a float would decide whether a patch halts.
    for _ in range(17):
        middle = (low + high) / 2
        if expected(middle) > aim:
            low = middle
        else:
            high = middle
    return high
