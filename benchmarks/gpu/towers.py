"""Image towers with random weights in half precision: the whole tower, and the parts before and after the pruning location."""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.spec import Cost, Keep, PruneSpec
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.predictor import CheckerboardScorer, ScorerConfig, make_scorer
from prtool.trainer.models.tower import VisionTower

LOCATION = 4
TINY = "tiny"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class Encoder:
    """A pruned encoder on a device; scores and the last norm are float32 in every precision.

    Attributes:
        tower: the tower, in `dtype`.
        scorer: the default patch scorer with random weights, in float32.
        prune: pruning at block 4.
        cost: multiply-accumulates, scorer included.
        dtype: of the tower.
    """

    tower: VisionTower
    scorer: nn.Module
    prune: PruneSpec
    cost: Cost
    dtype: torch.dtype

    def full(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) float32 -> (batch, E) float32, unpruned."""
        return functional.normalize(self.tower(pixels.to(self.dtype)).float(), dim=-1)

    def pre(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels -> tokens that enter the location, and their scores."""
        tokens = self.tower.run_pre(pixels.to(self.dtype), LOCATION)
        return tokens, cast(Tensor, self.scorer(tokens.float()))

    def post(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, D) -> (batch, E) float32."""
        return functional.normalize(self.tower.run_post(tokens, LOCATION).float(), dim=-1)

    def count(self, keep: float) -> int:
        """Patches that a ratio keeps."""
        return Keep.ratio(keep).resolve(self.prune.patches)

    def theoretical_speedup(self, keep: float) -> float:
        """Multiply-accumulates of the unpruned tower over those of the pruned one."""
        return self.cost.theoretical_speedup(self.prune, self.prune.counts(self.count(keep)))


def make_encoder(name: str, precision: str, device: torch.device) -> Encoder:
    """An encoder of open_clip's architecture `name` (or "tiny"); the same weights in each precision, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        tower = tower_of(_visual(name)).eval().requires_grad_(False)
        scorer = make_default_scorer(tower).eval().requires_grad_(False)
    cost = replace(tower.cost(), scorer_macs=scorer.macs())
    # Buffers that a `torch.device` block does not reach (numpy made them) go along here.
    return Encoder(tower.to(device, DTYPES[precision]), scorer.to(device), tower.prune_spec((LOCATION,)), cost, DTYPES[precision])


def make_default_scorer(tower: VisionTower) -> CheckerboardScorer:
    """The default patch scorer with random weights."""
    config = ScorerConfig()
    return CheckerboardScorer(make_scorer(config, tower.width, tower.patches, tower.prefix_tokens), tower.grid, config.checkerboard)


def pixels_for(encoder: Encoder, batch: int, device: torch.device) -> Tensor:
    """(batch, 3, height, width) float32 noise."""
    generator = torch.Generator(device).manual_seed(1)
    return torch.randn(batch, 3, *encoder.tower.image_size, device=device, generator=generator)


def _visual(name: str) -> nn.Module:
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    if name == TINY:
        return _build_vision_tower(32, CLIPVisionCfg(image_size=64, layers=6, width=64, head_width=32, patch_size=8))
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"open_clip has no architecture {name}")
    return _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), config.get("quick_gelu", False))
