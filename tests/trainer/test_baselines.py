"""Ways of choosing patches, each against what it is said to be, on tiny seeded towers."""

from dataclasses import replace

import pytest
import torch
import towers
from torch import Tensor, nn
from torch.nn import functional
from towers import open_clip_visual, timm_visual

from prtool.errors import ConfigError, KeepError, ShapeError
from prtool.spec import Keep, PruneSpec
from prtool.trainer.evaluation.baselines.base import Entered, RankingMethod
from prtool.trainer.evaluation.baselines.cls_attention import ClsAttention
from prtool.trainer.evaluation.baselines.evit import EVit
from prtool.trainer.evaluation.baselines.golden import Golden
from prtool.trainer.evaluation.baselines.merge import Merge
from prtool.trainer.evaluation.baselines.patch_ranking import PatchRanking, TunedPatchRanking
from prtool.trainer.evaluation.baselines.random_ import Random
from prtool.trainer.evaluation.baselines.registry import METHODS, Ingredients
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.predictor import ScorerConfig, make_scorer
from prtool.trainer.models.prompts import VisualTokens
from prtool.trainer.models.pruned import FirstOrder, PrunedEncoder
from prtool.trainer.models.tower import VisionTower

LOCATION = 2


pytestmark = pytest.mark.usefixtures("one_thread")


def pixels_of(tower: VisionTower, batch: int) -> Tensor:
    return torch.randn(batch, 3, *tower.image_size, generator=torch.Generator().manual_seed(3))


def entered_by(tower: VisionTower, batch: int = 4, locations: tuple[int, ...] = (LOCATION,)) -> Entered:
    return Entered.of(tower, pixels_of(tower, batch), range(batch), tower.prune_spec(locations))


def part_of(entered: Entered, rows: slice) -> Entered:
    return Entered(entered.embedded[rows], entered.tokens[rows], entered.indices[rows], entered.tower, entered.spec)


def scorer_of(tower: VisionTower) -> torch.nn.Module:
    torch.manual_seed(4)
    return make_scorer(ScorerConfig(channels=16, heads=2), tower.width, tower.patches, tower.prefix_tokens)


def methods_of(entered: Entered) -> list[RankingMethod]:
    generator = torch.Generator().manual_seed(0)
    ranking = torch.stack([torch.randperm(entered.spec.patches, generator=generator) for _ in entered.indices]).short()
    return [Random(5), Golden(ranking), ClsAttention(entered.tower), PatchRanking([scorer_of(entered.tower)])]


@pytest.mark.parametrize("number", range(4))
def test_encode_keeps_the_k_best_patches(number: int) -> None:
    """Against a plain loop: one image at a time, highest score first, lower index on ties."""
    entered = entered_by(tower_of(open_clip_visual("cls")))
    method = methods_of(entered)[number]
    scores = method.scores(entered)
    assert scores.shape == (4, 16)
    for row, values in enumerate(scores.tolist()):
        order = sorted(range(16), key=lambda patch: (-values[patch], patch))
        assert method.order(entered)[row].tolist() == order
        tokens = torch.stack([entered.tokens[row, 0], *(entered.tokens[row, 1 + patch] for patch in order[:5])])[None]
        for block in entered.tower.blocks[LOCATION - 1 :]:
            tokens = block(tokens)
        expected = functional.normalize(entered.tower.head(tokens), dim=-1)
        torch.testing.assert_close(method.encode(entered, (5,))[row : row + 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", range(4))
def test_a_choice_does_not_depend_on_the_batch(number: int) -> None:
    entered = entered_by(tower_of(open_clip_visual("cls")))
    method = methods_of(entered)[number]
    alone = [method.order(part_of(entered, slice(row, row + 1))) for row in range(4)]
    assert torch.equal(torch.cat(alone), method.order(entered))


def test_random_is_another_choice_for_each_image_and_seed() -> None:
    entered = entered_by(tower_of(open_clip_visual("cls")))
    orders = torch.cat([Random(seed).order(entered) for seed in (0, 1)])
    assert len({tuple(order) for order in orders.tolist()}) == 8
    counted = torch.bincount(torch.cat([Random(seed).order(entered)[:, :4].flatten() for seed in range(50)]), minlength=16)
    assert counted.min() > 25 and counted.max() < 80  # 50 on average


def test_golden_keeps_the_head_of_each_ranking() -> None:
    entered = entered_by(tower_of(open_clip_visual("cls")), batch=2)
    ranking = torch.stack([torch.arange(16).roll(shift) for shift in (3, 5, 7)]).short()
    swapped = Entered(entered.embedded, entered.tokens, (2, 0), entered.tower, entered.spec)
    assert Golden(ranking).order(swapped).tolist() == [ranking[2].tolist(), ranking[0].tolist()]


@pytest.mark.parametrize("ranking", [torch.arange(16), torch.zeros(2, 16), torch.arange(1, 17)[None]], ids=["one row", "zeros", "from one"])
def test_golden_refuses_what_orders_nothing(ranking: Tensor) -> None:
    with pytest.raises(ShapeError):
        Golden(ranking.short())


def test_golden_refuses_another_number_of_patches() -> None:
    entered = entered_by(tower_of(open_clip_visual("cls")), batch=1)
    with pytest.raises(ShapeError, match=r"9.*16"):
        Golden(torch.arange(9)[None]).order(entered)


@pytest.mark.parametrize("kind", ["cls", "average", "not square"])
def test_cls_attention_is_the_attention_of_the_block_entered(kind: str) -> None:
    tower = tower_of(open_clip_visual(kind))
    entered = entered_by(tower)
    block = tower.blocks[LOCATION - 1]
    _, weights = block.attn(*[block.ln_1(entered.tokens)] * 3, need_weights=True, average_attn_weights=True)
    torch.testing.assert_close(ClsAttention(tower).scores(entered), weights[:, 0, 1:], atol=1e-6, rtol=1e-4)


def test_cls_attention_leaves_registers_out() -> None:
    tower = tower_of(timm_visual("dinov2 registers"))
    entered = entered_by(tower)
    queries, keys = tower.queries_keys(LOCATION - 1, entered.tokens)
    heads = [functional.softmax(queries[:, head] @ keys[:, head].mT, dim=-1)[:, 0] for head in range(queries.shape[1])]
    torch.testing.assert_close(ClsAttention(tower).scores(entered), (sum(heads) / len(heads))[:, 5:])


def test_cls_attention_needs_a_class_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(towers.TIMM, "registers only", ("vit_medium_patch16_reg4_gap_256", "avg", "linear"))
    for kind, prefix in (("siglip", 0), ("registers only", 4)):
        tower = tower_of(timm_visual(kind))
        assert tower.prefix_tokens == prefix
        with pytest.raises(ConfigError, match=f"{prefix} prefix"):
            ClsAttention(tower)


def test_methods_without_class_token_run_on_siglip() -> None:
    entered = entered_by(tower_of(timm_visual("siglip")))
    for method in (Random(), PatchRanking([scorer_of(entered.tower)])):
        assert method.encode(entered, (3,)).shape == (4, entered.tower.embed_dim)


def test_patch_ranking_is_the_pruned_encoder() -> None:
    tower = tower_of(open_clip_visual("cls"))
    entered, scorer = entered_by(tower), scorer_of(tower)
    expected = PrunedEncoder(tower, [scorer], entered.spec)(pixels_of(tower, 4), Keep.count(7))
    torch.testing.assert_close(PatchRanking([scorer]).encode(entered, (7,)), expected, atol=1e-6, rtol=1e-6)


class ByChannel(nn.Module):
    """A scorer that anyone can follow: one channel of each patch."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 1:, self.channel]


@pytest.mark.parametrize("later", [(FirstOrder(1), FirstOrder(1)), (ByChannel(5), FirstOrder(1))], ids=["first order", "scored anew"])
def test_patch_ranking_at_several_locations_is_the_pruned_encoder(later: tuple[nn.Module, ...]) -> None:
    tower = tower_of(open_clip_visual("cls"))
    entered, scorers = entered_by(tower, locations=(1, 2, 4)), [scorer_of(tower), *later]
    expected = PrunedEncoder(tower, scorers, entered.spec)(pixels_of(tower, 4), Keep.count(4))
    torch.testing.assert_close(PatchRanking(scorers).encode(entered, (12, 8, 4)), expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(ConfigError, match="1"):
        PatchRanking(scorers[:1]).encode(entered, (12, 8, 4))


@torch.no_grad()
@pytest.mark.parametrize("number", range(4))
def test_several_locations_equal_a_loop(number: int) -> None:
    """Image by image: CLS attention ranks what is left at each location, random and golden keep their order."""
    tower = tower_of(open_clip_visual("cls"))
    entered = entered_by(tower, locations=(2, 3))
    method = [*methods_of(entered)[:3], PatchRanking([scorer_of(tower), ByChannel(0)])][number]
    encoded, order = method.encode(entered, (9, 5)), method.order(entered)
    for row in range(4):
        patches = list(entered.tokens[row, 1:][order[row, :9]])
        tokens = tower.blocks[1](torch.stack([entered.tokens[row, 0], *patches])[None])
        if method.name == "cls-attention":
            block = tower.blocks[2]
            scores = block.attn(*[block.ln_1(tokens)] * 3, need_weights=True)[1][0, 0, 1:].tolist()
        elif method.name == "patch-ranking":
            scores = tokens[0, 1:, 0].tolist()
        else:
            scores = list(range(9, 0, -1))
        best = sorted(range(9), key=lambda patch: (-scores[patch], patch))[:5]
        tokens = torch.stack([tokens[0, 0], *(tokens[0, 1 + patch] for patch in best)])[None]
        expected = functional.normalize(tower.head(tower.blocks[3](tower.blocks[2](tokens))), dim=-1)
        torch.testing.assert_close(encoded[row : row + 1], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("first", "layers", "locations"), [(1, 3, (2,)), (2, 1, (2, 4))])
def test_tuned_patch_ranking_is_the_tuned_encoder(first: int, layers: int, locations: tuple[int, ...]) -> None:
    tower = tower_of(open_clip_visual("cls"))
    torch.manual_seed(1)
    visual = VisualTokens(torch.randn(layers, 2, tower.width), first)
    spec = PruneSpec(tower.grid, tower.depth, locations, 1, 2, first)
    encoder = PrunedEncoder(tower, [scorer_of(tower), *[FirstOrder(1)] * (len(locations) - 1)], spec, visual).eval()
    entered, classes = entered_by(tower, locations=locations), torch.eye(3, 32)
    method = TunedPatchRanking(encoder, classes)
    for keep in (Keep.count(6), Keep.count(3), Keep.ratio(1.0)):
        expected = encoder(pixels_of(tower, 4), keep)
        torch.testing.assert_close(method.encode(entered, spec.counts(keep)), expected, atol=1e-6, rtol=1e-6)
    assert method.classes is classes
    counts = spec.counts(Keep.count(6))
    wanted = tower.cost().gmacs(spec.tokens_by_block(counts)) + scorer_of(tower).macs() / 1e9
    assert method.gmacs(tower.cost(), entered.spec, counts) == pytest.approx(wanted)
    with pytest.raises(ConfigError):
        method.encode(entered_by(tower, locations=(3,)), (4,))


def test_costs_by_hand() -> None:
    tower = tower_of(open_clip_visual("cls"))
    entered, cost, width = entered_by(tower), tower.cost(), 64
    long, short = 17, 1 + 8
    blocks = [tokens * 12 * width**2 + tokens**2 * 2 * width for tokens in (long, short, short, short)]
    encoder = 16 * 3 * 16 * 16 * width + sum(blocks) + width * 32
    random, golden, attention, ranking = (method.gmacs(cost, entered.spec, (8,)) * 1e9 for method in methods_of(entered))
    assert random == golden == pytest.approx(encoder)
    assert attention == pytest.approx(encoder + 18 * width**2 + 17 * width)
    assert ranking == pytest.approx(encoder + scorer_of(tower).macs())
    # Seven patches stay, the other nine become the eighth.
    assert EVit(tower).gmacs(cost, entered.spec, (8,)) * 1e9 == pytest.approx(encoder + 18 * width**2 + 17 * width + 9 * width)
    twice = tower.prune_spec((2, 4))
    blocks = [tokens * 12 * width**2 + tokens**2 * 2 * width for tokens in (17, 11, 11, 9)]
    scored = 18 * width**2 + 17 * width + 12 * width**2 + 11 * width
    assert ClsAttention(tower).gmacs(cost, twice, (10, 8)) * 1e9 == pytest.approx(encoder + sum(blocks) - encoder_blocks(width) + scored)


def encoder_blocks(width: int) -> int:
    return sum(tokens * 12 * width**2 + tokens**2 * 2 * width for tokens in (17, 9, 9, 9))


def real_tower() -> VisionTower:
    """The shape of ViT-B/16, without weights."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    with torch.device("meta"):
        return tower_of(_build_vision_tower(512, CLIPVisionCfg(image_size=224, layers=12, width=768, head_width=64, patch_size=16)))


@pytest.mark.parametrize("locations", [(4,), (4, 6, 8, 10), (1,)])
@pytest.mark.parametrize("keep", [1.0, 0.8, 0.6, 0.5])
def test_equal_macs(locations: tuple[int, ...], keep: float) -> None:
    """Every method costs what random costs, within 1 %, and its own scoring; avit's budget is tested where it runs."""
    tower = real_tower()
    spec, cost = tower.prune_spec(locations), tower.cost()
    counts = spec.counts(Keep.ratio(keep))
    wanted = Random().gmacs(cost, spec, counts)
    assert wanted == cost.gmacs(spec.tokens_by_block(counts))
    scoring = ClsAttention(tower).scoring_macs(spec, counts) / 1e9
    assert scoring < 0.035 * wanted
    assert ClsAttention(tower).gmacs(cost, spec, counts) == pytest.approx(wanted + scoring)
    assert EVit(tower).gmacs(cost, spec, counts) == pytest.approx(wanted + scoring, rel=0.01)
    assert Merge.tome(tower).gmacs(cost, spec, counts) == pytest.approx(wanted, rel=0.01)


def test_the_registry_makes_methods_under_their_names() -> None:
    tower = tower_of(open_clip_visual("cls"))
    encoder = PrunedEncoder(tower, [scorer_of(tower)], tower.prune_spec((LOCATION,)))
    given = Ingredients(tower, tower, tower.prune_spec((LOCATION,)), (scorer_of(tower),), 0, encoder, recovered=encoder)
    assert {name: make(given).name for name, make in METHODS.items()} == {name: name for name in METHODS}
    others = ["merge", "smaller-image", "tome", "evit", "avit", "cls-attention", "random"]
    assert list(METHODS) == ["patch-ranking", "patch-ranking-tokens", "recovered", *others]
    with pytest.raises(ConfigError, match="predictor"):
        METHODS["patch-ranking"](replace(given, scorers=()))
    with pytest.raises(ConfigError, match="learnable"):
        METHODS["patch-ranking-tokens"](replace(given, tuned=None))
    with pytest.raises(ConfigError, match="recovery"):
        METHODS["recovered"](replace(given, recovered=None))


def test_a_spec_with_learnable_tokens_is_refused() -> None:
    tower = tower_of(open_clip_visual("cls"))
    with pytest.raises(ConfigError):
        Entered(torch.zeros(1, 17, 64), torch.zeros(1, 17, 64), (0,), tower, PruneSpec((4, 4), 4, (2,), 1, learnable_tokens=2))


@pytest.mark.parametrize("counts", [(5,), (5, 6), (17, 4), (4, 0)])
def test_counts_that_fit_no_location_are_refused(counts: tuple[int, ...]) -> None:
    entered = entered_by(tower_of(open_clip_visual("cls")), locations=(2, 3))
    for method in (Random(), EVit(entered.tower), Merge.tome(entered.tower)):
        with pytest.raises(KeepError):
            method.encode(entered, counts)
