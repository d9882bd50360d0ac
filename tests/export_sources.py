"""Small seeded sources of an export: every kind of image tower beside a small text tower."""

import functools
from dataclasses import dataclass, replace

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from towers import TIMM, open_clip_visual, timm_visual

from prtool.export.source import ExportSource
from prtool.spec import MERGE, NONE, Preprocess
from prtool.trainer.models.dual_encoder import DualEncoder, TextTower
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.predictor import ScorerConfig, make_scorer
from prtool.trainer.models.prompts import VisualTokens
from prtool.trainer.models.pruned import FirstOrder, PlainEncoder, PrunedEncoder
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.store import tensors_digest

CONTEXT = 16


class LinearScorer(nn.Module):
    """One weight a channel: (batch, prefix + N, D) -> (batch, N)."""

    def __init__(self, width: int, prefix_tokens: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.prefix_tokens = prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens[:, self.prefix_tokens :, : self.linear.in_features]).squeeze(-1)


@functools.cache
def text_host(embed_dim: int) -> nn.Module:
    """A CLIP with a small text tower, frozen."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(image_size=32, layers=1, width=32, head_width=16, patch_size=16)
    text = CLIPTextCfg(context_length=CONTEXT, width=32, heads=2, layers=2)
    return CLIP(embed_dim, vision, text).eval().requires_grad_(False)


def make_source(kind: str, *, classes: bool = False, scorer: nn.Module | None = None, location: int = 2) -> ExportSource:
    """A source whose image tower is of one of the kinds of tests/towers.py."""
    visual = timm_visual(kind) if kind in TIMM else open_clip_visual(kind, quick_gelu=True)
    tower = tower_of(visual)
    torch.manual_seed(3)
    chosen = scorer or LinearScorer(tower.width, tower.prefix_tokens)
    pruned = PrunedEncoder(tower, [chosen], tower.prune_spec((location,))).eval().requires_grad_(False)
    names, templates = (("cat", "hot_dog", "car"), ("a photo of a {}.", "{} texture.")) if classes else ((), ())
    return ExportSource(_dual_encoder(kind, visual, tower), pruned, "linear", False, 1000, names, templates)


def smaller_source(kind: str, method: str = NONE) -> ExportSource:
    """A source whose tower reads images that are one patch smaller, and ranks patches or nothing else."""
    source = make_source(kind)
    native = source.model.native
    side = native.image_size[0] - native.patch_size[0]
    tower = native.resized(side)
    model = replace(source.model, tower=tower, preprocess=replace(source.model.preprocess, size=(side, side)))
    if method == NONE:
        return ExportSource(model, PlainEncoder(tower, tower.prune_spec(method=NONE)).eval(), "", False, 0)
    torch.manual_seed(3)
    scorer = LinearScorer(tower.width, tower.prefix_tokens)
    pruned = PrunedEncoder(tower, [scorer], tower.prune_spec((2,))).eval().requires_grad_(False)
    return ExportSource(model, pruned, "linear", False, 1000)


def merging_source(kind: str, locations: tuple[int, ...] = (2,), *, classes: bool = False) -> ExportSource:
    """A source that merges patches from the first of `locations` on, to the second or the last block but one."""
    visual = timm_visual(kind) if kind in TIMM else open_clip_visual(kind, quick_gelu=True)
    tower = tower_of(visual)
    merged = MergedEncoder(tower, tower.prune_spec(locations, method=MERGE)).eval().requires_grad_(False)
    names, templates = (("cat", "hot_dog", "car"), ("a photo of a {}.",)) if classes else ((), ())
    return ExportSource(_dual_encoder(kind, visual, tower), merged, "", False, 0, names, templates)


@dataclass(frozen=True)
class Progressive:
    """Pruning at several locations, and learnable tokens.

    Attributes:
        locations: 1-based.
        later: for each location behind the first, "first" for its order or "own" for a transformer.
        tokens, layers, first: learnable tokens, in so many blocks, from the 1-based block on; 0 tokens for none.
        drop_ratios: as a PruneSpec has them.
    """

    locations: tuple[int, ...] = (1, 2, 3)
    later: tuple[str, ...] = ("first", "own")
    tokens: int = 0
    layers: int = 1
    first: int = 1
    drop_ratios: tuple[int, ...] = ()


def progressive_source(kind: str, shape: Progressive, *, classes: bool = False) -> ExportSource:
    """A source that prunes at several locations, with learnable tokens if any."""
    visual = timm_visual(kind) if kind in TIMM else open_clip_visual(kind, quick_gelu=True)
    tower = tower_of(visual)
    torch.manual_seed(3)
    small = ScorerConfig(arch="transformer", channels=16, channel_hidden=32, heads=2)
    makers = {"first": lambda: FirstOrder(tower.prefix_tokens), "own": lambda: make_scorer(small, tower.width, tower.patches, tower.prefix_tokens)}
    scorers = [LinearScorer(tower.width, tower.prefix_tokens), *(makers[name]() for name in shape.later)]
    values = torch.randn(shape.layers, shape.tokens, tower.width, generator=torch.Generator().manual_seed(7))
    visual_tokens = VisualTokens(values, shape.first) if shape.tokens else None
    spec = replace(
        tower.prune_spec(shape.locations, shape.tokens), learnable_from_block=shape.first if shape.tokens else 1, drop_ratios=shape.drop_ratios
    )
    pruned = PrunedEncoder(tower, scorers, spec, visual_tokens).eval().requires_grad_(False)
    names, templates = (("cat", "hot_dog", "car"), ("a photo of a {}.",)) if classes else ((), ())
    return ExportSource(_dual_encoder(kind, visual, tower), pruned, "linear", False, 1000, names, templates)


def _dual_encoder(kind: str, visual: nn.Module, tower: VisionTower) -> DualEncoder:
    return DualEncoder(
        name=f"test {kind}",
        pretrained="",
        tower=tower,
        text=TextTower(text_host(tower.embed_dim)).eval(),
        tokenizer=SimpleTokenizer(context_length=CONTEXT),
        preprocess=Preprocess(tower.image_size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        logit_scale=50.0,
        logit_bias=0.0,
        weights_sha256=tensors_digest(visual.state_dict()),
        context_length=CONTEXT,
        native=tower,
    )
