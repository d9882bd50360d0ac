"""Small seeded sources of an export: every kind of image tower beside a small text tower."""

import functools

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from towers import TIMM, open_clip_visual, timm_visual

from prtool.export.source import ExportSource
from prtool.spec import Preprocess
from prtool.trainer.hosts import tower_of
from prtool.trainer.model import DualEncoder, TextTower, tensor_digest
from prtool.trainer.pruned import PrunedEncoder

CONTEXT = 16


class LinearScorer(nn.Module):
    """One weight a channel: (batch, prefix + N, D) -> (batch, N)."""

    def __init__(self, width: int, prefix_tokens: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.prefix_tokens = prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(tokens[:, self.prefix_tokens :]).squeeze(-1)


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
    model = DualEncoder(
        name=f"test {kind}",
        pretrained="",
        tower=tower,
        text=TextTower(text_host(tower.embed_dim)).eval(),
        tokenizer=SimpleTokenizer(context_length=CONTEXT),
        preprocess=Preprocess(tower.image_size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        logit_scale=50.0,
        logit_bias=0.0,
        weights_sha256=tensor_digest(visual),
        context_length=CONTEXT,
    )
    names, templates = (("cat", "hot_dog", "car"), ("a photo of a {}.", "{} texture.")) if classes else ((), ())
    return ExportSource(model, pruned, "linear", False, 1000, names, templates)
