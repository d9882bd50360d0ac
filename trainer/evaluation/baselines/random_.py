"""Random choice: what any method has to beat."""

import numpy as np
import torch
from torch import Tensor

from prtool.trainer.evaluation.baselines.base import Entered, RankingMethod


class Random(RankingMethod):
    """A random order for each image, from the seed and the image's index, so it is the same in every batch and at every k.

    Args:
        seed: 0 to 2**32 - 1.
    """

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, entered: Entered) -> Tensor:  # noqa: D102
        patches = entered.spec.patches
        # RandomState: its stream is frozen for good, so a published table can be made again with a later numpy.
        drawn = np.stack([np.random.RandomState([self.seed, index]).random_sample(patches) for index in entered.indices])
        return torch.from_numpy(drawn).to(entered.tokens.device)
