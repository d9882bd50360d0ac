"""VisionTower against the host's own forward, for kinds of image towers that are not in the contract of families."""

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn
from towers import OPEN_CLIP, ROTARY, open_clip_visual, timm_visual

from prtool.errors import ConfigError, ModelError
from prtool.spec import Keep
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.loading.image_only import TrunkVision
from prtool.trainer.models.tower import attention_with_gradients

OTHERS = [*OPEN_CLIP, "plain, average"]
"""Kinds behind those of the contract of families (tests/export/test_families.py)."""


def make(kind: str) -> nn.Module:
    return open_clip_visual(kind) if kind in OPEN_CLIP else timm_visual(kind)


@pytest.mark.parametrize("kind", OTHERS)
def test_pieces_equal_the_host(kind: str) -> None:
    visual = make(kind)
    tower = tower_of(visual)
    pixels = torch.randn(2, 3, *tower.image_size)
    expected = visual(pixels)
    tokens = tower.embed(pixels)
    assert tokens.shape == (2, tower.prefix_tokens + tower.patches, tower.token_width)
    for index in range(tower.depth):
        tokens = tower.block(index, tokens)
    torch.testing.assert_close(tower.head(tokens), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tower.run_post(tower.run_pre(pixels, 3), 3), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape[1] == tower.embed_dim


@pytest.mark.parametrize("kind", OTHERS)
def test_any_number_of_tokens_runs(kind: str) -> None:
    tower = tower_of(make(kind))
    tokens = tower.run_pre(torch.randn(2, 3, *tower.image_size), 2)
    assert tower.run_post(tokens[:, : tower.prefix_tokens + 3], 2).shape == (2, tower.embed_dim)


@pytest.mark.parametrize("kind", ROTARY)
def test_a_rotary_tower_takes_patches_in_any_order(kind: str) -> None:
    """All of them, shuffled: the embedding is the unpruned one, since each brings its place along."""
    visual = timm_visual(kind)
    tower = tower_of(visual)
    pixels = torch.randn(2, 3, *tower.image_size)
    tokens, order = tower.run_pre(pixels, 2), torch.randperm(tower.patches, generator=torch.Generator().manual_seed(0))
    shuffled = torch.cat((tokens[:, : tower.prefix_tokens], tokens[:, tower.prefix_tokens :][:, order]), dim=1)
    torch.testing.assert_close(tower.run_post(shuffled, 2), visual(pixels), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("image", [0, 1])
def test_a_rotary_tower_drops_as_timm_does(kind: str, image: int) -> None:
    """timm's own patch dropout at the input, with the same patches left."""
    from timm.layers import PatchDropoutWithIndices

    visual = timm_visual(kind)
    tower = tower_of(visual)
    pixels = torch.randn(2, 3, *tower.image_size, generator=torch.Generator().manual_seed(image))
    tokens = tower.embed(pixels)
    visual.trunk.patch_drop = PatchDropoutWithIndices(0.5, num_prefix_tokens=tower.prefix_tokens).train()
    torch.manual_seed(image)
    expected = visual(pixels)
    # The same draw of its own module tells which patches it kept.
    marked = torch.arange(tower.prefix_tokens + tower.patches, dtype=torch.float32)[None, :, None].expand(2, -1, 3)
    torch.manual_seed(image)
    left = visual.trunk.patch_drop(marked)[0][..., 0].long()
    kept = torch.stack([row[places] for row, places in zip(tokens, left, strict=True)])
    assert kept.shape[1] == tower.prefix_tokens + tower.patches // 2
    torch.testing.assert_close(tower.run_post(kept, 1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_places_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    """Also those of grids with more patches than bfloat16 can count."""
    import timm

    trunk = timm.create_model("vit_tiny_patch16_dinov3_qkvb", num_classes=0, img_size=640, depth=1)
    tower = tower_of(TrunkVision(trunk)).eval()
    assert tower.patches == 1600
    tokens = torch.cat((torch.zeros(1, 1605, tower.width), tower.places), dim=-1)
    rows = torch.cat((tokens, tower.without_place(torch.zeros(1, 2, tower.width))), dim=1).to(dtype)
    still = tower.table[-1:].expand(2, -1)
    torch.testing.assert_close(tower._rope(rows)[0, 0], torch.cat((trunk.rope.get_embed([40, 40]), still)), atol=0, rtol=0)


def test_rotations_that_differ_by_block_are_rejected() -> None:
    import timm

    trunk = timm.create_model("vit_small_patch16_rope_mixed_224", num_classes=0, img_size=64, depth=2)
    with pytest.raises(ModelError, match="rotates by a RotaryEmbeddingMixed"):
        tower_of(TrunkVision(trunk))


def test_quick_gelu_is_kept() -> None:
    visual = open_clip_visual("cls", quick_gelu=True)
    assert any(isinstance(module, QuickGELU) for module in visual.modules())
    tower = tower_of(visual)
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(tower(pixels), visual(pixels), atol=1e-5, rtol=1e-5)


def test_other_towers_are_refused_by_name() -> None:
    from open_clip.modified_resnet import ModifiedResNet

    with pytest.raises(ModelError, match="ModifiedResNet"):
        tower_of(ModifiedResNet([1, 1, 1, 1], 32, 4, image_size=64, width=16))


def test_a_location_outside_the_encoder_is_refused() -> None:
    tower = tower_of(open_clip_visual("cls"))
    with pytest.raises(ConfigError, match="1 to 4"):
        tower.run_pre(torch.randn(1, 3, 64, 64), 5)


@pytest.mark.parametrize(
    ("name", "full", "bounds"),
    [
        ("ViT-B-32", 4.41, {0.8: 1.17, 0.6: 1.42, 0.4: 1.74}),
        ("ViT-B-16", 17.56, {0.8: 1.18, 0.7: 1.30, 0.6: 1.43, 0.5: 1.61, 0.4: 1.83}),
        ("ViT-L-14", 81.01, {0.8: 1.22, 0.6: 1.55, 0.4: 2.14}),
        ("ViT-L-14-336", 190.96, {0.8: 1.23, 0.6: 1.58, 0.4: 2.18}),
    ],
)
def test_cost_equals_the_published_arithmetic(name: str, full: float, bounds: dict[float, float]) -> None:
    """GMAC and bounds worked out independently, by hand, for pruning on entry to block 4."""
    import open_clip

    with torch.device("meta"):
        config = open_clip.get_model_config(name)
        from open_clip.model import CLIPVisionCfg, _build_vision_tower

        tower = tower_of(_build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"])))
    cost, spec = tower.cost(), tower.prune_spec((4,))
    assert cost.full_gmacs(spec) == pytest.approx(full, abs=0.006)
    for ratio, bound in bounds.items():
        assert cost.theoretical_speedup(spec, spec.counts(Keep.ratio(ratio))) == pytest.approx(bound, abs=0.006)


def test_on_cuda_the_kernel_that_cannot_go_back_is_off():
    cuda = torch.backends.cuda
    allowed = cuda.mem_efficient_sdp_enabled()
    with attention_with_gradients(torch.device("cuda")):
        assert (cuda.mem_efficient_sdp_enabled(), cuda.flash_sdp_enabled(), cuda.math_sdp_enabled()) == (False, False, True)
    assert cuda.mem_efficient_sdp_enabled() == allowed
    with attention_with_gradients(torch.device("cpu")):
        assert cuda.mem_efficient_sdp_enabled() == allowed
