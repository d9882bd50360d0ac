"""CLS attention: keep the patches that the class token attends to."""

from torch import Tensor

from prtool.errors import ConfigError
from prtool.spec import PruneSpec
from prtool.trainer.baselines.base import Entered, RankingMethod
from prtool.trainer.vit import VisionTower


class ClsAttention(RankingMethod):
    """Attention of the class token to each patch, mean over heads, in the block that the tokens enter.

    It is the attention that the block at the location would have computed on all patches, so it is defined at
    location 1 too, where no block has run yet.

    Raises:
        ConfigError: the tower has no class token.
    """

    def __init__(self, tower: VisionTower) -> None:
        if not tower.has_cls:
            raise ConfigError(
                f"method 'cls-attention' needs a class token, but this image tower has none ({tower.prefix_tokens} prefix tokens, pooled "
                "otherwise); leave cls-attention out of --method"
            )
        self._width = tower.width

    @property
    def name(self) -> str:  # noqa: D102 - as declared
        return "cls-attention"

    def scores(self, entered: Entered) -> Tensor:  # noqa: D102
        queries, keys = entered.tower.queries_keys(entered.location - 1, entered.tokens)
        attention = (queries[:, :, :1] @ keys.transpose(-1, -2)).softmax(dim=-1)
        first = entered.spec.prefix_tokens
        return attention.mean(dim=1)[:, 0, first : first + entered.spec.patches]

    def scoring_macs(self, spec: PruneSpec) -> int:
        """The key of every token, the query of the class token, and their products; nothing is taken as shared with the block."""
        tokens = spec.always_kept + spec.patches
        return (tokens + 1) * self._width**2 + tokens * self._width
