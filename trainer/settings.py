"""The sections of a run's settings, each documented and limited at its field; without PyTorch, so that a wrong one is reported at once."""

import itertools
import math
from dataclasses import dataclass, replace

from prtool.errors import ConfigError
from prtool.records import check_settings, setting
from prtool.spec import MERGE, METHODS, NONE, RANK

SCORES = ("feature", "label", "confidence")
LABELLED_SCORES = ("label", "confidence")
"""Scores that need class embeddings."""
PRECISIONS = ("fp32", "bf16", "auto")
"""Of the golden search's and the recovery's arithmetic."""
ARCHITECTURES = ("mix-mlp", "mlp", "transformer")
REDUCTIONS = ("linear", "average")
AUXILIARY = ("position", "norm", "cls")
"""Names that `scorer.auxiliary` takes."""
LOSS_NAMES = ("kl", "margin", "listmle", "regression")
PATCH_RANKING_TOKENS = "patch-ranking-tokens"
"""Patch Ranking with the run's learnable tokens; a run without has none."""
RECOVERED = "recovered"
"""The run's own encoder with its corrections; a run without has none."""
MERGE_METHOD, SMALLER_IMAGE, TOME = "merge", "smaller-image", "tome"
METHOD_NAMES = ("patch-ranking", PATCH_RANKING_TOKENS, RECOVERED, MERGE_METHOD, SMALLER_IMAGE, TOME, "evit", "avit", "cls-attention", "random")
"""Names of the methods that `eval` compares, but for the oracle."""
GOLDEN = "golden"
"""The oracle: it needs a ranking of the very images, which the evaluation computes for it."""


def half_cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` as `progress` goes from 0 to 1."""
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """`[prune]`: what shortens the token sequence, and where."""

    method: str = setting(
        RANK,
        "rank (drop the patches that the predictor ranks lowest), merge (average similar patches inside several blocks; nothing is trained) or "
        "none (a smaller image alone: give image_size)",
        choices=METHODS,
    )
    locations: tuple[int, ...] = setting(
        (4,),
        "blocks (1-based, increasing) on entry to which patches drop; several prune progressively, by equal numbers at each. merge: the first "
        "block in which patches merge, and the last if two are given, else the last but one of the encoder. none: of no effect",
        minimum=1,
    )
    counts: tuple[int, ...] = setting((), "patches that stay at each location, in place of equal drops, such as [157, 137]; [] = equal drops")
    rescore: bool = setting(False, "train a scorer for each further location; false keeps the order of the first")

    def __post_init__(self) -> None:
        check_settings(self, "prune")
        places = list(self.locations)
        if not places or any(later <= place for place, later in itertools.pairwise(places)):
            raise ConfigError(f"prune.locations = {places}, but they must be blocks that increase, such as [4, 6, 8, 10]")
        if self.method == MERGE and len(places) > 2:
            raise ConfigError(f"prune.locations = {places}, but merging takes the first block, or the first and the last, such as [4] or [4, 11]")
        if self.counts and self.method == NONE:
            raise ConfigError(f"prune.counts = {list(self.counts)}, but prune.method = none drops no patch; leave them out")
        if self.counts and self.method == RANK and len(self.counts) != len(places):
            raise ConfigError(f"prune.counts = {list(self.counts)}, but prune.locations has {len(places)} blocks; give one count for each")
        if self.rescore and (len(places) == 1 or self.method != RANK):
            raise ConfigError(
                f"prune.rescore = true with prune.method = {self.method} and locations {places}, but it takes rank and several locations"
            )


@dataclass(frozen=True, slots=True)
class GoldenConfig:
    """`[golden]`: how patches are ranked. A score is computed without the candidate; high = prune first."""

    score: str = setting(
        "feature",
        "feature (cosine to the unpruned embedding; the paper's), confidence (highest class probability) or label (that of the true class)",
        choices=SCORES,
    )
    group: int = setting(2, "side of the square of neighbouring patches removed together, smaller at the edge; 1 = single patches", minimum=1)
    step: int = setting(0, "groups dropped in each greedy step, after which the rest are scored again; 0 = score once", minimum=0)
    floor: int = setting(0, "greedy search ends when at most this many patches remain", minimum=0)
    memory_mb: int = setting(1024, "upper limit of the memory for one batch of candidates, in MiB", minimum=1)
    precision: str = setting("auto", "auto (bf16 on GPUs that compute it and on CPUs with AMX), fp32 or bf16", choices=PRECISIONS)

    def __post_init__(self) -> None:
        check_settings(self, "golden")
        if self.floor and not self.step:
            raise ConfigError(f"golden.floor = {self.floor} with golden.step = 0, which scores once and drops nothing; give a step of 1 or more")


@dataclass(frozen=True, slots=True)
class ScorerConfig:
    """`[scorer]`: kind and sizes of a patch scorer, the sizes the paper's (section 3 and supplement, Table 1).

    `reduce="average", norm=False` is the research code's input. The defaults differ because they find more: matching
    rate @100 of 196 (random 0.510) of Mix-MLP on pets 0.69 as in the research code, 0.75 with norm, 0.78 with both.
    """

    arch: str = setting("mix-mlp", "mix-mlp (the paper's), mlp or transformer", choices=ARCHITECTURES)
    channels: int = setting(64, "channels that each token is reduced to", minimum=1)
    token_hidden: int = setting(32, "hidden width of the Mixer's MLP over tokens", minimum=1)
    channel_hidden: int = setting(256, "hidden width of the MLP over channels", minimum=1)
    heads: int = setting(8, "attention heads of the transformer; must divide scorer.channels", minimum=1)
    reduce: str = setting("linear", "linear (a learned projection) or average (adaptive pooling, as in the research code)", choices=REDUCTIONS)
    norm: bool = setting(True, "standardise each token over its channels first")
    checkerboard: float = setting(
        1.0,
        "how much every second patch is raised when patches are chosen, in standard deviations of an image's scores; 0 = none (the paper's)",
        minimum=0,
        maximum=10,
    )
    auxiliary: tuple[str, ...] = setting(
        (), "features besides channels: position (learned), norm (of each token), cls (cosine to the class token); [] = none", choices=AUXILIARY
    )

    def __post_init__(self) -> None:
        check_settings(self, "scorer")
        if self.channels % self.heads:
            raise ConfigError(f"scorer.heads = {self.heads}, but it must divide scorer.channels = {self.channels}")


@dataclass(frozen=True, slots=True)
class FitConfig:
    """`[fit]`: how a scorer is trained."""

    loss: str = setting("listmle", "kl (the paper's), margin, listmle or regression", choices=LOSS_NAMES)
    epochs: int = setting(50, "passes over the training images", minimum=1)
    batch: int = setting(64, "images a step", minimum=1)
    lr: float = setting(1e-3, "Adam's learning rate at the start", minimum=0)
    final_lr: float = setting(1e-4, "learning rate at the end of the half cosine", minimum=0)
    weight_decay: float = setting(1e-4, "Adam's weight decay, added to the gradient", minimum=0)
    noise: float = setting(0.0, "Gaussian noise on the tokens, as a share of their standard deviation; 0 = none", minimum=0)
    match_at: int = setting(
        0, "m of the matching rate that chooses the best epoch; 0 = 100 of 196 patches, the same share of other numbers", minimum=0
    )
    seed: int = setting(0, "of the order of images, sampled pairs and noise")
    save_every: int = setting(5, "epochs between two saved states", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self, "fit")

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0: a half cosine from `lr` to `final_lr`."""
        return half_cosine(self.lr, self.final_lr, epoch / self.epochs)


@dataclass(frozen=True, slots=True)
class DistillConfig:
    """`[distill]`: how a scorer is trained with the distillation objective; `[fit]`'s seed and weight decay apply as well."""

    steps: int = setting(200, "optimiser steps, rounded up to whole passes over the images; hardly depends on their number", minimum=1)
    batch: int = setting(16, "images a step", minimum=1)
    lr: float = setting(2e-3, "Adam's learning rate at the start", minimum=0)
    final_lr: float = setting(2e-4, "learning rate at the end of the half cosine", minimum=0)
    keep_low: float = setting(0.45, "each step keeps a share of the patches drawn from keep_low to keep_high", above=0, below=1)
    keep_high: float = setting(0.62, "upper end of that range", above=0, below=1)
    runner_ups: float = setting(0.15, "share of the patches that take part as runner-ups: the best of those not kept", above=0, maximum=1)
    noise: float = setting(0.3, "Gumbel noise on the scores, in standard deviations of an image's scores", minimum=0)
    temperature: float = setting(0.5, "width of the soft step between kept and dropped, in the same unit", above=0, maximum=1)
    floor: float = setting(0.01, "attention weight of a runner-up, as a share of a kept patch's", above=0, maximum=1)

    def __post_init__(self) -> None:
        check_settings(self, "distill")
        if self.keep_low > self.keep_high:
            raise ConfigError(f"distill.keep_low = {self.keep_low}, but it must be at most distill.keep_high = {self.keep_high}")

    def schedule(self, fit: FitConfig, images: int) -> FitConfig:
        """The loop's settings for a number of training images: this section's steps, batch and learning rates, and everything else of `fit`."""
        epochs = math.ceil(self.steps / math.ceil(images / self.batch))
        return replace(fit, epochs=epochs, batch=self.batch, lr=self.lr, final_lr=self.final_lr, match_at=0, save_every=1)


@dataclass(frozen=True, slots=True)
class TokensConfig:
    """`[tokens]`: which learnable tokens are trained, on how many images, and how (method, section 3)."""

    visual: int = setting(8, "learnable tokens behind the patches; 0 = none", minimum=0)
    layers: int = setting(0, "blocks that have visual tokens of their own; 1 = shallow, 0 = every block from tokens.first on (deep)", minimum=0)
    first: int = setting(
        0,
        "block on entry to which visual tokens are appended; 0 = the first pruning location, before which all is computed once; 1 = the paper's",
        minimum=0,
    )
    text: int = setting(0, "tokens of learned context in place of the prompt's first words; 0 = none", minimum=0)
    text_words: str = setting("", 'words that the context starts from; "" = those of the template')
    shots: int = setting(16, "training images of each class; 0 = all", minimum=0)
    keep: float = setting(0.6, "keep ratio of the pruned encoder that the tokens are trained in", above=0, maximum=1)
    distill: float = setting(10.0, "weight of 1 - cosine to the unpruned embedding, which needs no labels", minimum=0)
    label: float = setting(0.5, "weight of the cross-entropy on the class prompts; 0 trains without labels", minimum=0)
    epochs: int = setting(4, "passes over the images", minimum=1)
    batch: int = setting(16, "images a step", minimum=1)
    lr: float = setting(1.0, "SGD's learning rate at the start of the half cosine to 0", minimum=0)
    momentum: float = setting(0.9, "SGD's momentum", minimum=0, below=1)
    weight_decay: float = setting(0.0, "SGD's weight decay", minimum=0)
    seed: int = setting(0, "of the images, their order and the tokens' first values", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self, "tokens")
        if not self.visual + self.text:
            raise ConfigError("tokens.visual = 0 and tokens.text = 0, but at least one of them must be above 0")
        if not self.distill + self.label:
            raise ConfigError("tokens.distill = 0 and tokens.label = 0, but nothing is learned without either; raise one of them")
        if self.text and not self.label:
            raise ConfigError(f"tokens.text = {self.text} and tokens.label = 0, but only the class prompts teach a text context; raise tokens.label")

    def lr_at(self, progress: float) -> float:
        """The learning rate after a share of all steps, 0 to 1: a half cosine from `lr` to 0."""
        return half_cosine(self.lr, 0.0, progress)


@dataclass(frozen=True, slots=True)
class RecoverConfig:
    """`[recover]`: how the blocks that see fewer tokens learn the unpruned embeddings, without labels."""

    rank: int = setting(16, "rank of the correction of each matrix; gains and biases are corrected in full", minimum=1)
    macs_low: float = setting(
        0.5, "each step, and later the bundle, keeps patches that cost at least this share of the MACs of all", above=0, below=1
    )
    macs_high: float = setting(0.8, "likewise at most; each keep gains less in a wider range", above=0, maximum=1)
    copies: int = setting(1, "randomly cropped and mirrored copies of each training image, besides itself", minimum=0)
    crop: float = setting(0.35, "least share of an image's area that such a copy shows", above=0, maximum=1)
    steps: int = setting(200, "training steps, rounded up to whole passes over the images", minimum=1)
    batch: int = setting(24, "images a step", minimum=1)
    lr: float = setting(2e-4, "AdamW's learning rate at the start of the half cosine to 0", above=0)
    weight_decay: float = setting(0.0, "AdamW's weight decay", minimum=0)
    judged: int = setting(128, "validation images, at equal distances, that choose the best pass", minimum=1)
    precision: str = setting("auto", "auto (bf16 on GPUs that compute it and on CPUs with AMX), fp32 or bf16", choices=PRECISIONS)
    seed: int = setting(0, "of the first corrections, the keeps and the order of the images", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self, "recover")
        if self.macs_low > self.macs_high:
            raise ConfigError(f"recover.macs_low = {self.macs_low}, but it must be at most recover.macs_high = {self.macs_high}")

    def passes(self, images: int) -> int:
        """Passes over a number of training images."""
        return math.ceil(self.steps / math.ceil(images / self.batch))

    def lr_at(self, progress: float) -> float:
        """The learning rate after a share of all steps, 0 to 1: a half cosine from `lr` to 0."""
        return half_cosine(self.lr, 0.0, progress)
