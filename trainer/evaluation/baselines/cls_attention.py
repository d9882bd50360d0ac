"""CLS attention: keep the patches that the class token attends to."""

from torch import Tensor

from prtool.errors import ConfigError
from prtool.spec import PruneSpec
from prtool.trainer.evaluation.baselines.base import Counts, Entered, RankingMethod, arriving
from prtool.trainer.models.tower import VisionTower


class ClsAttention(RankingMethod):
    """Attention of the class token to each patch, mean over heads, in the block that the tokens enter.

    It is the attention that the block at the location would have computed on all tokens that arrive, so it is defined at
    location 1 too, where no block has run yet. Patches are scored again at each location.

    Raises:
        ConfigError: the tower has no class token.
    """

    name = "cls-attention"

    def __init__(self, tower: VisionTower) -> None:
        check_cls(tower, "cls-attention")
        self._width = tower.width

    def scores(self, entered: Entered) -> Tensor:  # noqa: D102
        return cls_attention(entered, 0, entered.tokens)

    def scores_at(self, place: int, entered: Entered, tokens: Tensor) -> Tensor:  # noqa: D102
        return cls_attention(entered, place, tokens)

    def scoring_macs(self, spec: PruneSpec, counts: Counts) -> int:  # noqa: D102
        return attention_macs(spec, counts, self._width)


def cls_attention(entered: Entered, place: int, tokens: Tensor) -> Tensor:
    """Attention of the class token in the block at a location, mean over heads; at the first location computed once a batch.

    Args:
        entered: where the batch came from.
        place: of the location, from 0.
        tokens: (batch, prefix + patches now, D) that enter it.

    Returns:
        (batch, patches now); the softmax is over all tokens, so rows sum to less than 1.
    """

    def attention() -> Tensor:
        queries, keys = entered.tower.queries_keys(entered.spec.locations[place] - 1, tokens)
        found = (queries[:, :, :1] @ keys.transpose(-1, -2)).softmax(dim=-1)
        return found.mean(dim=1)[:, 0, entered.spec.prefix_tokens :]

    return attention() if place else entered.once("cls attention", attention)


def attention_macs(spec: PruneSpec, counts: Counts, width: int) -> int:
    """Of `cls_attention` at every location: the key of each token, the query of the class token, and their products.

    Nothing is taken as shared with the block.
    """
    lengths = [spec.prefix_tokens + patches for patches in arriving(spec, counts)]
    return sum((tokens + 1) * width**2 + tokens * width for tokens in lengths)


def check_cls(tower: VisionTower, name: str) -> None:
    """Checks that a tower has the class token that the method `name` needs.

    Raises:
        ConfigError: it has none.
    """
    if not tower.has_cls:
        raise ConfigError(
            f"method {name!r} needs a class token, but this image tower has none ({tower.prefix_tokens} prefix tokens, pooled "
            f"otherwise); leave {name} out of --method"
        )
