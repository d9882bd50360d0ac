"""Tuning learnable tokens: frozen encoders, few labelled images, and the pruned encoder in the loop."""

from dataclasses import dataclass

from prtool.errors import ConfigError


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
    distill: float = 1.0
    label: float = 1.0
    epochs: int = 5
    batch: int = 4
    lr: float = 0.0025
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.visual + self.text < 1 or min(self.visual, self.text) < 0:
            raise ConfigError(f"tokens visual = {self.visual} and text = {self.text}, but at least one of them must be above 0")
