"""The sections of a run's settings, and the names that they and `eval` take; without PyTorch, so that a wrong one is said at once."""

import math
from dataclasses import dataclass

from prtool.errors import ConfigError

SCORES = ("feature", "label", "confidence")
LABELLED_SCORES = ("label", "confidence")
"""Scores that need class embeddings."""
PRECISIONS = ("fp32", "bf16", "auto")
"""Of the golden search's arithmetic."""
ARCHITECTURES = ("mix-mlp", "mlp", "transformer")
REDUCTIONS = ("linear", "average")
AUXILIARY = ("position", "norm", "cls")
"""Names that `scorer.auxiliary` takes."""
LOSS_NAMES = ("kl", "margin", "listmle", "regression")
TUNED = "patch-ranking-tokens"
"""Patch Ranking with the run's learnable tokens; a run without has none."""
METHOD_NAMES = ("patch-ranking", TUNED, "cls-attention", "evit", "avit", "tome", "random")
"""Names of the methods that `eval` compares, but for the oracle."""
GOLDEN = "golden"
"""The oracle: it needs a ranking of the very images, which the evaluation computes for it."""


@dataclass(frozen=True, slots=True)
class GoldenConfig:
    """How patches are ranked.

    Attributes:
        score: "feature" (cosine to the unpruned embedding), "label" (probability of the true class) or "confidence"
            (highest class probability), each computed without the candidate; high = prune first.
        group: b; squares of b x b neighbouring patches are left out together (smaller at the right and lower edge
            where b does not divide the grid).
        step: groups dropped in a greedy step, after which those that remain are scored again; 0 = score once.
        floor: the search ends when at most this many patches remain.
        memory_mb: memory for the activations of one batch of candidates, in MiB; an upper limit, not a target.
        precision: "fp32", "bf16", or "auto" (bf16 where the machine computes it natively).
    """

    score: str = "feature"
    group: int = 2
    step: int = 0
    floor: int = 0
    memory_mb: int = 1024
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ConfigError(f"golden score = {self.score!r}, but it must be one of {', '.join(SCORES)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"golden precision = {self.precision!r}, but it must be one of {', '.join(PRECISIONS)}")
        for name, least in (("group", 1), ("step", 0), ("floor", 0), ("memory_mb", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"golden {name} = {getattr(self, name)}, but it must be at least {least}")
        if self.floor and not self.step:
            raise ConfigError(f"golden floor = {self.floor} with step = 0, which scores once and drops nothing; give a step of 1 or more")


@dataclass(frozen=True, slots=True)
class ScorerConfig:
    """Kind and sizes of a patch scorer, the sizes the paper's (section 3 and supplement, Table 1).

    `reduce="average", norm=False` is the research code's input. The defaults differ because they find more: matching
    rate @100 of 196 (random 0.510) of Mix-MLP on pets 0.69 as in the research code, 0.75 with norm, 0.78 with both.

    Attributes:
        arch: "mix-mlp" (the paper's choice), "mlp" or "transformer".
        channels: channels that each token is reduced to.
        token_hidden: hidden width of the Mixer's MLP over tokens.
        channel_hidden: hidden width of the MLP over channels, in every architecture.
        heads: attention heads of the transformer; must divide `channels`.
        reduce: "linear", a learned projection of the channels, or "average", adaptive average pooling without weights.
        norm: standardise each token over its channels before they are reduced.
        checkerboard: how much every second patch is raised when patches are chosen (see `CheckerboardScorer`), in standard deviations
            of an image's scores; 0 for the order as predicted (the paper's).
        auxiliary: what is added to the reduced tokens, of `AUXILIARY`; () for nothing (the paper's).
    """

    arch: str = "mix-mlp"
    channels: int = 64
    token_hidden: int = 32
    channel_hidden: int = 256
    heads: int = 8
    reduce: str = "linear"
    norm: bool = True
    checkerboard: float = 1.0
    auxiliary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ConfigError(f"scorer arch = {self.arch!r}, but it must be one of {', '.join(ARCHITECTURES)}")
        if self.reduce not in REDUCTIONS:
            raise ConfigError(f"scorer reduce = {self.reduce!r}, but it must be one of {', '.join(REDUCTIONS)}")
        sizes = {"channels": self.channels, "token_hidden": self.token_hidden, "channel_hidden": self.channel_hidden, "heads": self.heads}
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"scorer {name} = {size}, but it must be at least 1")
        if not 0.0 <= self.checkerboard <= 10.0:
            raise ConfigError(f"scorer checkerboard = {self.checkerboard}, but it must be from 0 (none) to 10 standard deviations")
        if len(set(self.auxiliary)) != len(self.auxiliary) or not set(self.auxiliary) <= set(AUXILIARY):
            raise ConfigError(f"scorer auxiliary = {list(self.auxiliary)}, but give some of {', '.join(AUXILIARY)}, each once")
        if self.channels % self.heads:
            raise ConfigError(f"scorer heads = {self.heads}, but {self.channels} channels must divide by it")


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How a scorer is trained.

    Attributes:
        loss: "kl" (the paper's), "margin", "listmle" or "regression".
        epochs: passes over the training images.
        batch: images a step.
        lr: Adam's learning rate at the start.
        final_lr: learning rate of the cosine's end.
        weight_decay: Adam's, added to the gradient (as in the research code).
        noise: standard deviation of Gaussian noise on the tokens, as a share of their own; 0 for none.
        match_at: m of the matching rate that chooses the best epoch; 0 takes 100 of 196.
        seed: of the order of images, sampled pairs and noise.
        save_every: epochs between two saved states.
    """

    loss: str = "listmle"
    epochs: int = 50
    batch: int = 64
    lr: float = 1e-3
    final_lr: float = 1e-4
    weight_decay: float = 1e-4
    noise: float = 0.0
    match_at: int = 0
    seed: int = 0
    save_every: int = 5

    def __post_init__(self) -> None:
        if self.loss not in LOSS_NAMES:
            raise ConfigError(f"fit loss = {self.loss!r}, but it must be one of {', '.join(LOSS_NAMES)}")
        for name in ("epochs", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fit {name} = {getattr(self, name)}, but it must be at least 1")
        for name in ("lr", "final_lr", "weight_decay", "noise", "match_at"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"fit {name} = {value}, but it must be a finite number of at least 0")

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0: a half cosine from `lr` to `final_lr`."""
        return self.final_lr + (self.lr - self.final_lr) * (1.0 + math.cos(math.pi * epoch / self.epochs)) / 2.0


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """How a scorer learns from its own choice; see `DistillObjective`. `FitConfig`'s seed and weight decay apply as well.

    Attributes:
        steps: optimiser steps, rounded up to whole passes over the training images; what a scorer needs hardly depends on their number.
        batch: images a step.
        lr, final_lr: Adam's learning rate at the start and the end of the half cosine.
        keep_low, keep_high: each step keeps a share of the patches drawn from this range.
        runner_ups: share of the patches that take part as runner-ups: the best of those that are not kept.
        noise: scale of the Gumbel noise on the scores, in standard deviations of an image's scores.
        temperature: width of the soft step between kept and dropped, in the same unit.
        floor: attention weight of a runner-up, as a share of a kept patch's.
    """

    steps: int = 200
    batch: int = 16
    lr: float = 2e-3
    final_lr: float = 2e-4
    keep_low: float = 0.45
    keep_high: float = 0.62
    runner_ups: float = 0.15
    noise: float = 0.3
    temperature: float = 0.5
    floor: float = 0.01

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"distill {name} = {getattr(self, name)}, but it must be at least 1")
        for name in ("lr", "final_lr", "noise"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"distill {name} = {getattr(self, name)}, but it must be a finite number of at least 0")
        if not 0.0 < self.keep_low <= self.keep_high < 1.0:
            raise ConfigError(f"distill keep_low = {self.keep_low} and keep_high = {self.keep_high}, but they must rise between 0 and 1")
        for name in ("runner_ups", "temperature", "floor"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"distill {name} = {getattr(self, name)}, but it must be above 0 and at most 1")

    def schedule(self, fit: FitConfig, images: int) -> FitConfig:
        """The loop's settings for so many training images: this section's steps, batch and learning rates, and everything else of `fit`."""
        epochs = math.ceil(self.steps / math.ceil(images / self.batch))
        return FitConfig(fit.loss, epochs, self.batch, self.lr, self.final_lr, fit.weight_decay, fit.noise, 0, fit.seed, 1)


@dataclass(frozen=True, slots=True)
class TokensConfig:
    """What is tuned, on how many images, and how (method, section 3).

    Attributes:
        visual: learnable tokens behind the patches; 0 for none.
        layers: blocks that have tokens of their own, from `first` on; 1 is the shallow form, 0 takes every block (deep).
        first: 1-based block on entry to which they are appended; 0 takes the first pruning location, where all that runs
            before it, scores included, stays as it was and is computed once; 1 is the paper's.
        text: tokens of context learned in place of the prompt's first words; 0 for none.
        text_words: words that the context starts from; "" takes those of the template.
        shots: training images of each class; 0 takes all.
        keep: keep ratio of the pruned encoder in the loop.
        distill: weight of 1 - cosine to the unpruned embedding, which needs no labels.
        label: weight of the cross-entropy on the class prompts; 0 tunes without labels.
        epochs: passes over the images.
        batch: images a step.
        lr: SGD's learning rate at the start of the half cosine to 0.
        momentum: SGD's.
        weight_decay: SGD's.
        seed: of the images, their order and the first values.
    """

    visual: int = 8
    layers: int = 0
    first: int = 0
    text: int = 0
    text_words: str = ""
    shots: int = 16
    keep: float = 0.6
    distill: float = 10.0
    label: float = 0.5
    epochs: int = 4
    batch: int = 16
    lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"visual": 0, "text": 0, "layers": 0, "first": 0, "shots": 0, "epochs": 1, "batch": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"tokens {name} = {getattr(self, name)}, but it must be {least} or more")
        for name in ("distill", "label", "lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"tokens {name} = {value}, but it must be a finite number of at least 0")
        if self.visual + self.text < 1:
            raise ConfigError(f"tokens visual = {self.visual} and text = {self.text}, but at least one of them must be above 0")
        if not 0 < self.keep <= 1:
            raise ConfigError(f"tokens keep = {self.keep}, but it must be above 0 and at most 1, such as 0.6")
        if self.momentum >= 1:
            raise ConfigError(f"tokens momentum = {self.momentum}, but it must be below 1")
        if self.distill + self.label == 0:
            raise ConfigError("tokens distill = 0 and label = 0, but at least one of them must be above 0, for nothing would be learned")
        if self.text and not self.label:
            raise ConfigError(f"tokens text = {self.text} and label = 0, but only the class prompts teach a text context; raise tokens.label")

    def lr_at(self, progress: float) -> float:
        """The learning rate after a share of all steps, 0 to 1: a half cosine from `lr` to 0."""
        return self.lr * (1.0 + math.cos(math.pi * progress)) / 2.0
