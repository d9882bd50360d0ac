"""Towers and models at a smaller image size, against the host library's own model made at that size."""

import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from local_model import TEXT, VISION, write_model
from open_clip import factory
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from torch import nn
from towers import CLIP, OPEN_CLIP, TIMM, open_clip_visual, timm_visual

from prtool.errors import ConfigError, ModelError
from prtool.spec import NONE, Keep
from prtool.trainer.models.dual_encoder import check_image_size, load_model
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.loading.source import ModelSource
from prtool.trainer.models.tower import VisionTower

SQUARE = [kind for kind in OPEN_CLIP if kind != "not square"]
CONFIGURED = {"vision_cfg": {}, "text_cfg": {"context_length": 8, "width": 16, "heads": 1, "layers": 1}, "embed_dim": 32}


def host_at_size(monkeypatch: pytest.MonkeyPatch, folder: Path, vision: dict[str, Any], state: dict[str, torch.Tensor], side: int) -> nn.Module:
    """The image tower that `open_clip.create_model(force_image_size=)` makes of the weights of a native one."""
    config = {**CONFIGURED, "vision_cfg": vision, "quick_gelu": True}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "sized", config)
    native = open_clip.create_model("sized")
    named = {f"visual.{name}": tensor for name, tensor in state.items()}
    torch.save({**native.state_dict(), **named}, folder / "weights.pt")
    return open_clip.create_model("sized", pretrained=str(folder / "weights.pt"), force_image_size=side).visual.eval()


@pytest.mark.parametrize("kind", SQUARE)
def test_an_open_clip_tower_is_what_force_image_size_makes(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    visual = open_clip_visual(kind, quick_gelu=True)
    native = tower_of(visual)
    side = native.image_size[0] - native.patch_size[0]
    expected = host_at_size(monkeypatch, tmp_path, {**CLIP, **OPEN_CLIP[kind]}, visual.state_dict(), side)
    tower = native.resized(side)
    assert tower.image_size == (side, side)
    pixels = torch.randn(2, 3, side, side)
    torch.testing.assert_close(tower(pixels), expected(pixels), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", TIMM)
def test_a_timm_tower_is_what_img_size_makes(kind: str) -> None:
    visual = timm_visual(kind)
    native = tower_of(visual)
    side = native.image_size[0] - native.patch_size[0]
    expected = timm_visual(kind, size=side)
    # timm resamples the positions of a checkpoint whose model has another size with this filter.
    filtered = filter_of(expected.trunk)(visual.trunk.state_dict(), expected.trunk)
    expected.trunk.load_state_dict(filtered)
    expected.head.load_state_dict(visual.head.state_dict())
    pixels = torch.randn(2, 3, side, side)
    torch.testing.assert_close(native.resized(side)(pixels), expected(pixels), atol=1e-6, rtol=1e-5)


def filter_of(trunk: nn.Module) -> Any:
    return sys.modules[type(trunk).__module__].checkpoint_filter_fn


def all_towers() -> list[VisionTower]:
    return [tower_of(open_clip_visual(kind)) for kind in SQUARE] + [tower_of(timm_visual(kind)) for kind in TIMM]


def test_a_resized_tower_shares_every_tensor_but_the_positions_and_leaves_the_native_one() -> None:
    for native in all_towers():
        pixels = torch.randn(1, 3, *native.image_size)
        before, side = native(pixels), native.patch_size[0]
        tower = native.resized(side)
        own = {name: tensor.data_ptr() for name, tensor in native.named_parameters()}
        others = [name for name, tensor in tower.named_parameters() if own[name] != tensor.data_ptr()]
        absolute = any("pos" in name for name in own)
        assert len(others) == int(absolute) and all("pos" in name for name in others), others
        assert (tower.grid, tower.patches, tower.prefix_tokens) == ((1, 1), 1, native.prefix_tokens)
        assert torch.equal(native(pixels), before)
        assert native.resized(native.image_size[0]) is native


def test_the_cost_counts_the_smaller_image_against_the_native_encoder() -> None:
    for native in all_towers():
        tower = native.resized(native.image_size[0] - native.patch_size[0])
        cost, spec = tower.cost(), tower.prune_spec(method=NONE)
        assert cost.full_gmacs(spec) == native.cost().full_gmacs(native.prune_spec((1,)))
        tokens = [tower.prefix_tokens + tower.patches] * tower.depth
        assert cost.pruned_gmacs(spec, ()) == cost.gmacs(tokens) < cost.full_gmacs(spec)
        assert cost.embed_macs * native.patches == pytest.approx(native.cost().embed_macs * tower.patches, rel=0.2)


@pytest.mark.parametrize("side", [80, 40, 15, 0, -16, 63])
def test_a_size_that_does_not_fit_is_an_error(side: int) -> None:
    for visual in (open_clip_visual("cls"), timm_visual("siglip")):
        with pytest.raises(ConfigError, match=rf"image_size = {side}\b.*16"):
            tower_of(visual).resized(side)


def test_a_native_size_that_is_no_multiple_of_the_patch() -> None:
    """60 px hold three patches of 16 px, as 48 px do."""
    native = tower_of(_build_vision_tower(32, CLIPVisionCfg(**{**CLIP, "image_size": 60})))
    assert native.resized(60) is native
    assert native.resized(32).grid == (2, 2)
    with pytest.raises(ConfigError, match=r"image_size = 48\b.*give 32"):
        native.resized(48)


def test_what_cannot_be_resized_says_why() -> None:
    with pytest.raises(ModelError, match="64 x 96"):
        tower_of(open_clip_visual("not square")).resized(32)
    with pytest.raises(ModelError, match="resized"):
        tower_of(open_clip_visual("cls")).resized(48).resized(32)


@pytest.mark.parametrize(("name", "reason"), [("ViTamin-S", "convolutional|trunk"), ("RN50", "ResNet")])
def test_towers_with_convolutions_are_rejected_by_their_configuration(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        check_image_size(name, 128)


@pytest.mark.parametrize(
    ("name", "side", "patch"),
    [("ViT-B-16", 168, 16), ("ViT-B-32", 240, 32), ("ViT-L-14", 160, 14), ("ViT-B-16-SigLIP", 232, 16), ("EVA02-B-16", 168, 16)],
)
def test_the_configuration_alone_tells_a_size_that_does_not_fit(name: str, side: int, patch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from prtool.trainer.models import dual_encoder

    def no_weights(name: str, pretrained: str) -> ModelSource:
        raise AssertionError("weights were read")

    monkeypatch.setattr(dual_encoder, "resolve", no_weights)
    with pytest.raises(ConfigError, match=rf"image_size = {side}\b.*{patch} px"):
        load_model(name, "", "cpu", side)


@pytest.mark.parametrize(
    ("name", "native", "side"), [("ViT-B-16", 224, 160), ("ViT-B-32", 224, 96), ("ViT-L-14", 224, 168), ("ViT-B-16-SigLIP", 224, 176)]
)
def test_sizes_that_fit_real_architectures(name: str, native: int, side: int) -> None:
    assert check_image_size(name, side) == side
    assert check_image_size(name, native) == check_image_size(name, 0) == 0


def test_a_model_of_another_size_keeps_its_native_tower(tmp_path: Path) -> None:
    name = write_model(tmp_path / "model")
    plain, model = load_model(name), load_model(name, image_size=24)
    assert plain.native is plain.tower
    assert (model.tower.image_size, model.native.image_size) == ((24, 24), (32, 32))
    assert (model.preprocess.size, model.native_preprocess) == ((24, 24), plain.preprocess)
    assert model.weights_sha256 == plain.weights_sha256
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.native(pixels), plain.tower(pixels))
    assert model.tower.prune_spec((2,)).counts(Keep.ratio(0.5)) == (5,)


def test_a_model_at_its_own_size_is_native(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path / "model"), image_size=VISION["image_size"])
    assert model.native is model.tower
    assert TEXT["context_length"] == model.context_length
