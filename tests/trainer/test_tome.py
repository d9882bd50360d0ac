"""Token merging against plain loops over the published formulas, on a tiny tower."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_encoder import tiny_encoder
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prtool.errors import ConfigError, ModelError
from prtool.spec import Keep
from prtool.trainer.evaluation.baselines.base import Entered
from prtool.trainer.evaluation.baselines.tome import MergedEncoder, ToMe, match, merge, merged_gmacs, schedule
from prtool.trainer.models.tower import VisionTower

F64 = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    return tiny_encoder("cls").tower.double()


def pixels(tower: VisionTower, images: int = 2) -> torch.Tensor:
    return torch.randn(images, 3, *tower.image_size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def plain_pairs(keys: F64, r: int) -> list[tuple[int, int]]:
    """The r most alike (even, odd) pairs of one image, one for each even token but the class token."""
    edges = []
    for even in range(2, len(keys), 2):
        cosines = {odd: float(keys[even] @ keys[odd] / np.linalg.norm(keys[even]) / np.linalg.norm(keys[odd])) for odd in range(1, len(keys), 2)}
        odd = max(cosines, key=lambda item: cosines[item])
        edges.append((cosines[odd], even, odd))
    return [(even, odd) for _, even, odd in sorted(edges, reverse=True)[:r]]


def plain_merge(tokens: F64, sizes: list[float], pairs: list[tuple[int, int]]) -> tuple[F64, list[float]]:
    """The class token and the other even tokens that stay, then the odd ones, each the mean of the patches it stands for."""
    members = {odd: [odd] for odd in range(1, len(tokens), 2)}
    for even, odd in pairs:
        members[odd].append(even)
    gone = {even for even, _ in pairs}
    groups = [[even] for even in range(0, len(tokens), 2) if even not in gone] + [members[odd] for odd in sorted(members)]
    totals = [sum(sizes[item] for item in group) for group in groups]
    means = [sum(sizes[item] * tokens[item] for item in group) / total for group, total in zip(groups, totals, strict=True)]
    return np.stack(means), totals


def plain_attention(layer: Any, tokens: F64, sizes: list[float]) -> tuple[F64, F64]:
    """One image, head by head and query by query, with log sizes on the logits; the output and the mean keys."""
    weight, bias = layer.in_proj_weight.numpy(), layer.in_proj_bias.numpy()
    query, key, value = np.split(tokens @ weight.T + bias, 3, axis=1)
    heads, width = layer.num_heads, query.shape[1] // layer.num_heads
    out, mean_keys = np.zeros_like(tokens), np.zeros((len(tokens), width))
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        mean_keys += key[:, part] / heads
        for place in range(len(tokens)):
            logits = [query[place, part] @ key[other, part] / math.sqrt(width) + math.log(sizes[other]) for other in range(len(tokens))]
            powers = np.exp(np.array(logits) - max(logits))
            out[place, part] = (powers / powers.sum()) @ value[:, part]
    return out @ layer.out_proj.weight.numpy().T + layer.out_proj.bias.numpy(), mean_keys


def plain_encoder(tower: VisionTower, image: torch.Tensor, merges: tuple[int, ...]) -> torch.Tensor:
    """One image through every block; norms and MLPs are the host's own."""
    tokens = tower.embed(image[None])[0].numpy()
    sizes = [1.0] * len(tokens)
    for layer, r in zip(tower.blocks, merges, strict=True):
        block: Any = layer
        attended, keys = plain_attention(block.attn, block.ln_1(torch.from_numpy(tokens)).numpy(), sizes)
        tokens = tokens + attended
        if r:
            tokens, sizes = plain_merge(tokens, sizes, plain_pairs(keys, r))
        tokens = tokens + block.mlp(block.ln_2(torch.from_numpy(tokens))).numpy()
    assert sum(sizes) == tower.patches + 1, "every patch is in exactly one token"
    return functional.normalize(tower.head(torch.from_numpy(tokens)[None]), dim=-1)[0]


@pytest.mark.parametrize("merges", [(3, 3, 3, 1), (8, 0, 2, 2), (1, 0, 0, 0)])
def test_the_encoder_equals_plain_loops(tower: VisionTower, merges: tuple[int, ...]) -> None:
    images = pixels(tower)
    with torch.inference_mode():
        found = MergedEncoder(tower, merges)(images)
        wanted = torch.stack([plain_encoder(tower, image, merges) for image in images])
        plain = functional.normalize(tower(images), dim=-1)
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-12)
    assert (found - plain).abs().max() > 1e-4, "merging changed nothing"


def test_without_merges_it_is_the_unpruned_tower(tower: VisionTower) -> None:
    images = pixels(tower)
    with torch.inference_mode():
        found = MergedEncoder(tower, (0,) * tower.depth)(images)
        torch.testing.assert_close(found, functional.normalize(tower(images), dim=-1), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("tokens", "r"), [(17, 8), (17, 1), (12, 5)])
def test_matching_and_merging_equal_loops(tokens: int, r: int) -> None:
    random = np.random.default_rng(1)
    keys, values, sizes = random.standard_normal((3, tokens, 5)), random.standard_normal((3, tokens, 4)), random.integers(1, 5, (3, tokens)) * 1.0
    merged, totals = merge(torch.from_numpy(values), torch.from_numpy(sizes), match(torch.from_numpy(keys), r))
    for image in range(3):
        wanted, weights = plain_merge(values[image], list(sizes[image]), plain_pairs(keys[image], r))
        np.testing.assert_allclose(merged[image].numpy(), wanted, atol=1e-12)
        np.testing.assert_allclose(totals[image].numpy(), weights)


def test_cost_is_what_torch_counts(tower: VisionTower) -> None:
    """torch counts two operations a multiply-accumulate, and no scaling, norm or sum."""
    for merges in ((0, 0, 0, 0), (3, 2, 2, 2)):
        # Written out, attention is two matrix products, which the counter knows on every processor.
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            MergedEncoder(tower, merges)(pixels(tower, 1))
        assert merged_gmacs(tower, merges) == pytest.approx(counter.get_total_flops() / 2e9, rel=1e-6)


@pytest.mark.parametrize("keep", [1.0, 0.8, 0.6, 0.5])
def test_the_schedule_costs_as_much_as_the_pruned_encoder(keep: float) -> None:
    """On ViT-B/16's shape: 12 blocks, 196 patches."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    from prtool.trainer.models.hosts import tower_of

    with torch.device("meta"):
        visual = _build_vision_tower(512, CLIPVisionCfg(image_size=224, layers=12, width=768, head_width=64, patch_size=16))
    real = tower_of(visual)
    spec = real.prune_spec((4,))
    wanted = real.cost().pruned_gmacs(spec, spec.counts(Keep.ratio(keep)))
    merges = schedule(real, wanted)
    assert merged_gmacs(real, merges) == pytest.approx(wanted, rel=0.004)
    assert max(merges) - min(merges) <= 1 and list(merges) == sorted(merges, reverse=True)
    assert (sum(merges) == 0) == (keep == 1.0)


def test_a_budget_below_all_merges_is_refused(tower: VisionTower) -> None:
    """8 of 16 patches merge away in block 1, then 4 of 8, 2 of 4 and 1 of 2."""
    least = merged_gmacs(tower, (8, 4, 2, 1))
    assert schedule(tower, least) == (8, 4, 2, 1)
    with pytest.raises(ConfigError, match="keep"):
        schedule(tower, 0.99 * least)


def timm_tower() -> VisionTower:
    return tiny_encoder("dinov2 registers").tower.double()


def test_timm_without_merges_is_the_unpruned_tower() -> None:
    tower = timm_tower()
    with torch.inference_mode():
        found = MergedEncoder(tower, (0,) * tower.depth)(pixels(tower))
        torch.testing.assert_close(found, functional.normalize(tower(pixels(tower)), dim=-1), rtol=0.0, atol=1e-12)


def plain_timm(tower: VisionTower, image: torch.Tensor, merges: tuple[int, ...]) -> torch.Tensor:
    """One image; registers take part in attention and never merge. Norms, projections and MLPs are the host's own."""
    tokens, registers = tower.embed(image[None])[0].numpy(), tower.prefix_tokens - 1
    sizes = [1.0] * len(tokens)
    for layer, r in zip(tower.blocks, merges, strict=True):
        block: Any = layer
        heads = block.attn.num_heads
        query, key, value = np.split(block.attn.qkv(block.norm1(torch.from_numpy(tokens))).numpy(), 3, axis=1)
        width, out, mean_keys = query.shape[1] // heads, np.zeros_like(tokens), 0.0
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            mean_keys = mean_keys + key[:, part] / heads
            powers = np.exp(query[:, part] @ key[:, part].T / math.sqrt(width)) * np.array(sizes)
            out[:, part] = powers / powers.sum(axis=1, keepdims=True) @ value[:, part]
        tokens = tokens + block.ls1(block.attn.proj(torch.from_numpy(out))).numpy()
        if r:
            inside = [0, *range(1 + registers, len(tokens))]
            merged, counted = plain_merge(tokens[inside], [sizes[item] for item in inside], plain_pairs(mean_keys[inside], r))
            tokens = np.concatenate([merged[:1], tokens[1 : 1 + registers], merged[1:]])
            sizes = [counted[0], *sizes[1 : 1 + registers], *counted[1:]]
        tokens = tokens + block.ls2(block.mlp(block.norm2(torch.from_numpy(tokens)))).numpy()
    return functional.normalize(tower.head(torch.from_numpy(tokens)[None]), dim=-1)[0]


def test_timm_with_registers_equals_plain_loops() -> None:
    tower, merges = timm_tower(), (3, 0, 2)
    with torch.inference_mode():
        found = MergedEncoder(tower, merges)(pixels(tower))
        wanted = torch.stack([plain_timm(tower, image, merges) for image in pixels(tower)])
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-12)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            MergedEncoder(tower, merges)(pixels(tower, 1))
    assert merged_gmacs(tower, merges) == pytest.approx(counter.get_total_flops() / 2e9, rel=1e-6)


def test_as_a_method_it_spends_the_budget(tower: VisionTower) -> None:
    spec, images = tower.prune_spec((2, 3)), pixels(tower)
    with torch.inference_mode():
        entered, method = Entered.of(tower, images, range(2), spec), ToMe(tower)
        for counts in ((12, 8), (9, 5)):
            budget = tower.cost().gmacs(spec.tokens_by_block(counts))
            merges = schedule(tower, budget)
            torch.testing.assert_close(method.encode(entered, counts), MergedEncoder(tower, merges)(images), rtol=0.0, atol=1e-12)
            # One merge more or less is 1.5 % on 16 patches.
            assert method.gmacs(tower.cost(), spec, counts) == pytest.approx(budget, rel=0.015)


def test_other_towers_and_wrong_numbers_are_refused(tower: VisionTower) -> None:
    with pytest.raises(ConfigError, match=r"3.* 4"):
        MergedEncoder(tower, (1, 1, 1))
    for kind in ("siglip", "average", "attentional"):
        with pytest.raises(ModelError, match="CLS pooling"):
            MergedEncoder(tiny_encoder(kind).tower, (0,) * 4)
