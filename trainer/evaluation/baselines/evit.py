"""EViT (Liang et al., Not All Patches Are What You Need, ICLR 2022): keep what CLS attends to, fuse the rest into one token."""

import torch
from torch import Tensor

from prtool.errors import ConfigError
from prtool.spec import Cost, PruneSpec
from prtool.trainer.evaluation.baselines.base import Counts, Entered, Method, arriving, encoder_gmacs
from prtool.trainer.evaluation.baselines.cls_attention import attention_macs, check_cls, cls_attention
from prtool.trainer.models.pruned import gather, select
from prtool.trainer.models.tower import VisionTower


class EVit(Method):
    """Token reorganization (section 3.2): the others become the sum of their tokens, weighted by the attention they got.

    As in the authors' code the weights are the attentive values themselves, not brought to a sum of 1, and at a later
    location a fused token is a candidate like every patch: it is kept, or fused again, and so never lost. In the paper
    tokens leave a block between its attention and its MLP; here they leave on entry to the block, like every other
    method's, by the attention that this block pays them. Training-free: the paper fine-tunes the encoder with it.

    At a budget of k patches k - 1 stay next to the fused token, so that as many tokens run as in every other method; where
    nothing drops, nothing is fused.

    Raises:
        ConfigError: the tower has no class token.
    """

    name = "evit"

    def __init__(self, tower: VisionTower) -> None:
        check_cls(tower, "evit")
        if tower.rotary:
            raise ConfigError("method 'evit' fuses patches into one token, which has no place in an image tower with rotary positions; give others")
        self._width = tower.width

    def encode(self, entered: Entered, counts: Counts) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, of the attended patches and the fused token."""
        if entered.keeps_all(counts):
            return entered.whole
        prefix = entered.spec.prefix_tokens

        def shorten(place: int, tokens: Tensor) -> Tensor:
            if counts[place] == tokens.shape[1] - prefix:
                return tokens
            return fuse(tokens, cls_attention(entered, place, tokens), counts[place], prefix)

        return entered.walk(shorten)

    def gmacs(self, cost: Cost, spec: PruneSpec, counts: Counts) -> float:
        """Cost of one image in 10^9 MAC: the encoder, the attention, and the weighted sums."""
        pairs = zip(arriving(spec, counts), counts, strict=True)
        summed = sum(before - (after - 1) for before, after in pairs if after < before)
        return encoder_gmacs(cost, spec, counts) + (attention_macs(spec, counts, self._width) + summed * self._width) / 1e9


def fuse(tokens: Tensor, weights: Tensor, k: int, prefix_tokens: int) -> Tensor:
    """Keeps the k - 1 patches of the highest weights, and replaces the others by their weighted sum.

    Args:
        tokens: (batch, prefix + patches, D).
        weights: (batch, patches), high = keep; they weight the sum as they are.
        k: patches that stay with the fused one, 1 to patches - 1.
        prefix_tokens: tokens before the patches; they stay.

    Returns:
        (batch, prefix + k, D): prefix, kept patches in falling order, fused token.
    """
    order = select(weights, weights.shape[1])
    dropped = order[:, k - 1 :]
    fused = weights.gather(1, dropped).unsqueeze(1) @ gather(tokens[:, prefix_tokens:], dropped, 0)
    return torch.cat((gather(tokens, order[:, : k - 1], prefix_tokens), fused), dim=1)
