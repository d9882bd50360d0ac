"""The pruned encoder against plain loops over its blocks, at several locations and with learnable tokens."""

import pytest
import torch
from tiny_encoder import tiny_encoder
from torch.nn import functional

from prtool.errors import ConfigError
from prtool.spec import Keep, PruneSpec
from prtool.trainer.models.prompts import VisualTokens
from prtool.trainer.models.pruned import FirstOrder, PrunedEncoder

KINDS = ["cls", "siglip", "dinov2 registers", "average", "eva02", "dinov3"]


def by_channel(channel):
    """A scorer that anyone can follow: one channel of each patch."""

    class Channel(torch.nn.Module):
        def __init__(self, prefix):
            super().__init__()
            self.prefix = prefix

        def forward(self, tokens):
            return tokens[:, self.prefix :, channel]

    return Channel


def plain(tower, visual, spec, channels, pixels, counts):
    """One image at a time, one block at a time: lists of tokens, sorted by hand."""
    found = []
    for image in pixels:
        embedded = tower.embed(image[None])[0]
        prefix, patches = list(embedded[: spec.prefix_tokens]), list(embedded[spec.prefix_tokens :])
        appended = []
        for block in range(1, tower.depth + 1):
            if visual is not None and visual.first <= block < visual.first + len(visual.values):
                row = visual.values[block - visual.first]
                appended = list(tower.without_place(tower.pre_norm(row) if block == 1 else row))
            if block in spec.locations:
                place = spec.locations.index(block)
                channel = channels[place]
                if channel is not None:
                    patches.sort(key=lambda patch, channel=channel: -float(patch[channel]))
                patches = patches[: counts[place]]
            tokens = tower.run_blocks(torch.stack(prefix + patches + appended)[None], block, block)[0]
            prefix, patches = list(tokens[: len(prefix)]), list(tokens[len(prefix) : len(prefix) + len(patches)])
            appended = list(tokens[len(prefix) + len(patches) :])
        found.append(functional.normalize(tower.head(torch.stack(prefix + patches)[None])[0], dim=-1))
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("locations", "channels", "first", "layers"),
    [((2,), (0,), None, 0), ((1, 3), (0, None), None, 0), ((2, 3), (1, 2), 1, 3), ((2, 3), (0, None), 2, 1), ((1,), (3,), 1, 1), ((3,), (1,), 3, 1)],
)
def test_every_form_equals_a_loop_over_blocks(kind, locations, channels, first, layers):
    tower = tiny_encoder(kind).tower
    torch.manual_seed(0)
    visual = None if first is None else VisualTokens(torch.randn(layers, 2, tower.width), first)
    spec = PruneSpec(tower.grid, tower.depth, locations, tower.prefix_tokens, 0 if visual is None else 2, first or 1)
    scorers = [FirstOrder(spec.prefix_tokens) if channel is None else by_channel(channel)(spec.prefix_tokens) for channel in channels]
    encoder = PrunedEncoder(tower, scorers, spec, visual).eval()
    pixels = torch.randn(3, 3, *tower.image_size)
    for keep in (Keep.ratio(1.0), Keep.ratio(0.6), Keep.count(2)):
        with torch.no_grad():
            wanted = plain(tower, visual, spec, channels, pixels, spec.counts(keep))
            assert torch.allclose(encoder(pixels, keep), wanted, atol=2e-6)


def test_keeping_every_patch_is_the_frozen_tower():
    tower = tiny_encoder("cls").tower
    spec = tower.prune_spec((1, 2, 3))
    encoder = PrunedEncoder(tower, [by_channel(0)(1), FirstOrder(1), FirstOrder(1)], spec).eval()
    pixels = torch.randn(2, 3, *tower.image_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(encoder(pixels, Keep.ratio(1.0)), functional.normalize(tower(pixels), dim=-1), atol=2e-6)


def test_learnable_tokens_and_spec_must_agree():
    tower = tiny_encoder("cls").tower
    visual = VisualTokens(torch.zeros(1, 2, tower.width), 2)
    with pytest.raises(ConfigError, match=r"2 .*0 "):
        PrunedEncoder(tower, [FirstOrder(1)], tower.prune_spec((2,)), visual)
    with pytest.raises(ConfigError, match=r"3.* 2"):
        PruneSpec(tower.grid, tower.depth, (2,), 1, 2, 3)
