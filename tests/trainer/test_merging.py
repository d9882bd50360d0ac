"""Gradual merging against plain loops over the published formulas, on tiny towers; and ToMe as a method."""

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

from prtool.errors import ConfigError, KeepError, ModelError
from prtool.spec import MERGE, Cost, Keep, PruneSpec
from prtool.trainer.evaluation.baselines.base import Entered
from prtool.trainer.evaluation.baselines.merge import Merge, schedule
from prtool.trainer.models.merging import MergedEncoder, match, merge
from prtool.trainer.models.tower import VisionTower

F64 = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def tower() -> VisionTower:
    return tiny_encoder("cls").tower.double()


def pixels(tower: VisionTower, images: int = 2) -> torch.Tensor:
    return torch.randn(images, 3, *tower.image_size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def plain_pairs(keys: F64, r: int) -> list[tuple[int, int]]:
    """The r most alike (even, odd) pairs of one image, one for each even token but the class token; of equal ones the last merge."""
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


def steps_of(tower: VisionTower, counts: tuple[int, ...], locations: tuple[int, ...]) -> list[int | None]:
    """Pairs that merge in each block; None where nothing is merged or moved."""
    pairs = dict(zip(locations, (before - after for before, after in zip((tower.patches, *counts), counts, strict=False)), strict=True))
    return [pairs.get(block) for block in range(1, tower.depth + 1)]


def plain_encoder(tower: VisionTower, image: torch.Tensor, merges: list[int | None]) -> torch.Tensor:
    """One image through every block; norms and MLPs are the host's own."""
    tokens = tower.embed(image[None])[0].numpy()
    sizes = [1.0] * len(tokens)
    for layer, r in zip(tower.blocks, merges, strict=True):
        block: Any = layer
        attended, keys = plain_attention(block.attn, block.ln_1(torch.from_numpy(tokens)).numpy(), sizes)
        tokens = tokens + attended
        if r is not None:
            tokens, sizes = plain_merge(tokens, sizes, plain_pairs(keys, r))
        tokens = tokens + block.mlp(block.ln_2(torch.from_numpy(tokens))).numpy()
    assert sum(sizes) == tower.patches + 1, "every patch is in exactly one token"
    return functional.normalize(tower.head(torch.from_numpy(tokens)[None]), dim=-1)[0]


CASES = [((1, 3), (13, 10, 7)), ((2, 2), (8,)), ((1, 2), (16, 15)), ((2, 3), (10, 10)), ((1, 3), (8, 4, 2))]


@pytest.mark.parametrize(("blocks", "counts"), CASES)
def test_the_encoder_equals_plain_loops(tower: VisionTower, blocks: tuple[int, int], counts: tuple[int, ...]) -> None:
    images, spec = pixels(tower), tower.prune_spec(blocks, method=MERGE)
    with torch.inference_mode():
        found = MergedEncoder(tower, spec).encode(images, counts)
        wanted = torch.stack([plain_encoder(tower, image, steps_of(tower, counts, spec.locations)) for image in images])
        plain = functional.normalize(tower(images), dim=-1)
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-12)
    assert (found - plain).abs().max() > 1e-4, "merging changed nothing"


@pytest.mark.parametrize("kind", ["cls", "dinov2 registers"])
def test_without_merges_it_is_the_unpruned_tower(kind: str) -> None:
    tower = tiny_encoder(kind).tower.double()
    images, encoder = pixels(tower), MergedEncoder(tower, tower.prune_spec((1,), method=MERGE))
    with torch.inference_mode():
        wanted = functional.normalize(tower(images), dim=-1)
        torch.testing.assert_close(encoder(images, Keep.ratio(1.0)), wanted, rtol=0.0, atol=1e-12)


def test_its_stages_in_a_row_are_the_encoder(tower: VisionTower) -> None:
    encoder, counts = MergedEncoder(tower, tower.prune_spec((1,), method=MERGE)), (12, 9, 5)
    with torch.inference_mode():
        tokens, metric = encoder.run_pre(pixels(tower))
        tokens, sizes = encoder.merge(tokens, metric, None, counts[0])
        for place, k in enumerate(counts[1:], start=1):
            tokens, sizes = encoder.merge(*encoder.run_mid(place, tokens, sizes), sizes, k)
        assert tokens.shape[1] == 6 and sizes.sum(dim=1).tolist() == [17.0, 17.0]
        torch.testing.assert_close(encoder.run_post(tokens, sizes), encoder.encode(pixels(tower), counts), rtol=0.0, atol=0.0)


def test_ties_go_to_the_lower_index() -> None:
    """Four even and four odd tokens, all the same: the first odd one is every partner, and the last even ones merge."""
    matched = match(torch.ones(1, 8, 3), 2)
    assert matched.staying.tolist() == [[0, 1]] and sorted(matched.merging[0].tolist()) == [2, 3] and matched.partner.tolist() == [[0, 0]]


@pytest.mark.parametrize(("tokens", "r"), [(17, 8), (17, 1), (12, 5)])
def test_matching_and_merging_equal_loops(tokens: int, r: int) -> None:
    random = np.random.default_rng(1)
    keys, values, sizes = random.standard_normal((3, tokens, 5)), random.standard_normal((3, tokens, 4)), random.integers(1, 5, (3, tokens)) * 1.0
    merged, totals = merge(torch.from_numpy(values), torch.from_numpy(sizes), match(torch.from_numpy(keys), r))
    for image in range(3):
        wanted, weights = plain_merge(values[image], list(sizes[image]), plain_pairs(keys[image], r))
        np.testing.assert_allclose(merged[image].numpy(), wanted, atol=1e-12)
        np.testing.assert_allclose(totals[image].numpy(), weights)


@pytest.mark.parametrize("kind", ["cls", "dinov2 registers"])
@pytest.mark.parametrize("fewer", [2, 3])
def test_cost_is_what_torch_counts(kind: str, fewer: int) -> None:
    """torch counts two operations a multiply-accumulate, and no scaling, norm or sum."""
    tower = tiny_encoder(kind).tower.double()
    spec = tower.prune_spec((1,), method=MERGE)
    counts = spec.counts(tower.patches - fewer * len(spec.locations))
    # Written out, attention is two matrix products, which the counter knows on every processor.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        MergedEncoder(tower, spec).encode(pixels(tower, 1), counts)
    assert tower.cost().pruned_gmacs(spec, counts) == pytest.approx(counter.get_total_flops() / 2e9, rel=1e-6)


def plain_timm(tower: VisionTower, image: torch.Tensor, merges: list[int | None]) -> torch.Tensor:
    """One image; registers take part in attention and never merge. Norms, projections and MLPs are the host's own."""
    tokens, registers = tower.embed(image[None])[0].numpy(), tower.prefix_tokens - 1
    sizes = [1.0] * len(tokens)
    for layer, r in zip(tower.blocks, merges, strict=True):
        block: Any = layer
        heads = block.attn.num_heads
        query, key, value = np.split(block.attn.qkv(block.norm1(torch.from_numpy(tokens))).numpy(), 3, axis=1)
        width, out, mean_keys = query.shape[1] // heads, np.zeros_like(tokens), np.zeros((len(tokens), query.shape[1] // heads))
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            mean_keys = mean_keys + key[:, part] / heads
            powers = np.exp(query[:, part] @ key[:, part].T / math.sqrt(width)) * np.array(sizes)
            out[:, part] = powers / powers.sum(axis=1, keepdims=True) @ value[:, part]
        tokens = tokens + block.ls1(block.attn.proj(torch.from_numpy(out))).numpy()
        if r is not None:
            inside = [0, *range(1 + registers, len(tokens))]
            merged, counted = plain_merge(tokens[inside], [sizes[item] for item in inside], plain_pairs(mean_keys[inside], r))
            tokens = np.concatenate([merged[:1], tokens[1 : 1 + registers], merged[1:]])
            sizes = [counted[0], *sizes[1 : 1 + registers], *counted[1:]]
        tokens = tokens + block.ls2(block.mlp(block.norm2(torch.from_numpy(tokens)))).numpy()
    return functional.normalize(tower.head(torch.from_numpy(tokens)[None]), dim=-1)[0]


def test_timm_with_registers_equals_plain_loops() -> None:
    tower, counts = tiny_encoder("dinov2 registers").tower.double(), (13, 9)
    spec = tower.prune_spec((1,), method=MERGE)
    with torch.inference_mode():
        found = MergedEncoder(tower, spec).encode(pixels(tower), counts)
        wanted = torch.stack([plain_timm(tower, image, steps_of(tower, counts, spec.locations)) for image in pixels(tower)])
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("counts", "value"), [((12, 9), "12, 9"), ((12, 13, 5), "12, 13, 5"), ((7, 6, 5), "7, 6, 5"), ((8, 4, 0), "8, 4, 0")])
def test_counts_out_of_reach_are_an_error(tower: VisionTower, counts: tuple[int, ...], value: str) -> None:
    with pytest.raises(KeepError, match=value):
        MergedEncoder(tower, tower.prune_spec((1,), method=MERGE)).encode(pixels(tower), counts)


@pytest.mark.parametrize(
    ("kind", "reason"), [("siglip", "pools over all"), ("average", "pools over all"), ("attentional", "pools over all"), ("eva", "Block")]
)
def test_other_towers_say_why_they_cannot_merge(kind: str, reason: str) -> None:
    tower = tiny_encoder(kind).tower
    with pytest.raises(ModelError, match=reason):
        MergedEncoder(tower, tower.prune_spec((1,), method=MERGE))
    with pytest.raises(ConfigError, match=f"tome.*{reason}"):
        Merge.tome(tower)


def vit_b_16() -> tuple[Cost, PruneSpec, PruneSpec]:
    """Its cost, and the specs of ranking at location 4 and of ToMe: 12 blocks, 196 patches."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    from prtool.trainer.models.hosts import tower_of

    with torch.device("meta"):
        visual = _build_vision_tower(512, CLIPVisionCfg(image_size=224, layers=12, width=768, head_width=64, patch_size=16))
    real = tower_of(visual)
    return real.cost(), real.prune_spec((4,)), real.prune_spec((1,), method=MERGE)


@pytest.mark.parametrize("keep", [1.0, 0.8, 0.6, 0.5])
def test_the_schedule_costs_as_much_as_the_pruned_encoder(keep: float) -> None:
    cost, ranking, merging = vit_b_16()
    wanted = cost.pruned_gmacs(ranking, ranking.counts(Keep.ratio(keep)))
    counts = schedule(cost, merging, wanted)
    assert cost.pruned_gmacs(merging, counts) == pytest.approx(wanted, rel=0.004)
    merges = [before - after for before, after in zip((196, *counts), counts, strict=False)]
    assert max(merges) - min(merges) <= 1 and merges == sorted(merges, reverse=True)
    assert (sum(merges) == 0) == (keep == 1.0)


def test_a_budget_below_all_merges_is_refused(tower: VisionTower) -> None:
    """8 of 16 patches merge away in block 1, then 4 of 8 and 2 of 4."""
    cost, spec = tower.cost(), tower.prune_spec((1,), method=MERGE)
    least = cost.pruned_gmacs(spec, (8, 4, 2))
    assert schedule(cost, spec, least) == (8, 4, 2)
    with pytest.raises(ConfigError, match="keep"):
        schedule(cost, spec, 0.99 * least)


def test_as_a_method_it_spends_the_budget(tower: VisionTower) -> None:
    spec, images, cost, merging = tower.prune_spec((2, 3)), pixels(tower), tower.cost(), tower.prune_spec((1,), method=MERGE)
    with torch.inference_mode():
        entered, method = Entered.of(tower, images, range(2), spec), Merge.tome(tower)
        for counts in ((12, 8), (9, 5)):
            budget = cost.gmacs(spec.tokens_by_block(counts))
            wanted = MergedEncoder(tower, merging).encode(images, schedule(cost, merging, budget))
            torch.testing.assert_close(method.encode(entered, counts), wanted, rtol=0.0, atol=1e-12)
            # One merge more or less is 2 % on 16 patches.
            assert method.gmacs(cost, spec, counts) == pytest.approx(budget, rel=0.02)
