"""Keep, PruneSpec and Cost against hand-made figures and plain loops."""

import itertools
import math

import pytest

from prtool.errors import ConfigError, KeepError
from prtool.spec import Cost, Keep, Preprocess, PruneSpec


@pytest.mark.parametrize(("text", "k"), [("0.6", 118), ("1.0", 196), ("0.5", 98), ("118", 118), ("196", 196), ("0.001", 1), (" .4 ", 78), ("2", 2)])
def test_keep_text(text: str, k: int) -> None:
    assert Keep.parse(text).resolve(196) == k


@pytest.mark.parametrize("text", ["0", "0.0", "1", "1.5", "nan", "inf", "-0.3", "-5", "", "half", "0,6", "1e9", "٣"])
def test_bad_keep_text_is_refused(text: str) -> None:
    with pytest.raises(KeepError):
        Keep.parse(text)


@pytest.mark.parametrize("value", [0, 1, -1, 1.5, 0.0, math.nan, math.inf, True, "0.6", None])
def test_bad_keep_values_are_refused(value: object) -> None:
    with pytest.raises(KeepError):
        Keep.of(value)  # type: ignore[arg-type]


def test_a_float_is_a_ratio_and_an_int_a_count() -> None:
    assert Keep.of(1.0).resolve(49) == 49
    assert Keep.of(49).resolve(49) == 49
    assert Keep.of(Keep.count(1)).resolve(49) == 1
    with pytest.raises(KeepError, match="1 to 49"):
        Keep.of(50).resolve(49)


def test_half_rounds_up_at_every_size() -> None:
    # Python's own round() goes to the even number; other languages do not, and k must be the same in each.
    assert [Keep.ratio(0.5).resolve(n) for n in (1, 3, 5, 49)] == [1, 2, 3, 25]


def test_counts_drop_equal_numbers_and_end_at_the_keep_rate() -> None:
    spec = PruneSpec((14, 14), 12, (4, 6, 8, 10))
    counts = spec.counts(Keep.ratio(0.6))
    assert counts[-1] == 118
    drops = [196 - counts[0], *(a - b for a, b in itertools.pairwise(counts))]
    assert sum(drops) == 78
    assert max(drops) - min(drops) <= 1


def test_tokens_by_block_against_a_loop() -> None:
    spec = PruneSpec((14, 14), 12, (4, 8), prefix_tokens=1, learnable_tokens=2)
    counts = (150, 100)
    expected = []
    for block in range(1, 13):
        patches = 196 if block < 4 else 150 if block < 8 else 100
        expected.append(1 + patches + 2)
    assert spec.tokens_by_block(counts) == expected


def test_cost_against_a_loop() -> None:
    spec = PruneSpec((2, 2), 3, (2,))
    cost = Cost(embed_macs=1000, token_macs=10, attention_macs=3, head_macs=7, head_token_macs=2, scorer_macs=50)
    by_hand = 1000 + (5 * 10 + 25 * 3) + 2 * (3 * 10 + 9 * 3) + 7 + 3 * 2 + 50
    assert cost.pruned_gmacs(spec, spec.counts(2)) == pytest.approx(by_hand / 1e9)
    full = 1000 + 3 * (5 * 10 + 25 * 3) + 7 + 5 * 2
    assert cost.full_gmacs(spec) == pytest.approx(full / 1e9)
    assert cost.theoretical_speedup(spec, spec.counts(2)) == pytest.approx(full / by_hand)


def test_a_last_block_that_one_token_asks() -> None:
    """By hand: 3 blocks of 5 tokens; in the last, 1 token is computed and 4 give keys and values."""
    cost = Cost(100, 20, 3, 7, last_block_queries=1, kv_token_macs=8)
    whole = 2 * (5 * 20 + 25 * 3) + (20 + 5 * 3) + 4 * 8
    assert cost.gmacs([5, 5, 5]) == pytest.approx((100 + whole + 7) / 1e9)
    assert cost.gmacs([1]) == pytest.approx((100 + 20 + 3 + 7) / 1e9)


@pytest.mark.parametrize("locations", [(), (0,), (13,), (4, 4), (6, 4)])
def test_bad_locations_are_refused(locations: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        PruneSpec((14, 14), 12, locations)


def test_bad_preprocess_is_refused() -> None:
    with pytest.raises(ConfigError, match="shortest"):
        Preprocess((8, 8), (0, 0, 0), (1, 1, 1), resize_mode="fit")
    with pytest.raises(ConfigError, match="resize_ratio"):
        Preprocess((8, 8), (0, 0, 0), (1, 1, 1), resize_mode="squash", resize_ratio=1.5)
    with pytest.raises(ConfigError, match="bicubic"):
        Preprocess((8, 8), (0, 0, 0), (1, 1, 1), interpolation="lanczos")


@pytest.mark.parametrize(
    ("drops", "expected"), [((), (164, 132, 100)), ((1, 1, 1), (164, 132, 100)), ((3, 0, 1), (124, 124, 100)), ((0, 0, 5), (196, 196, 100))]
)
def test_patches_drop_in_the_given_proportion(drops: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """N = 196, k = 100: 96 patches drop; location i keeps 196 - floor(96 x share of the first i drops)."""
    found = PruneSpec((14, 14), 12, (2, 4, 6), drop_ratios=drops).counts(Keep.count(100))
    by_hand = [196 - (96 * sum((drops or (1, 1, 1))[: i + 1])) // sum(drops or (1, 1, 1)) for i in range(3)]
    assert found == tuple(by_hand)
    assert found[-1] == 100
    assert found == expected


def test_given_counts_come_back() -> None:
    spec = PruneSpec((14, 14), 12, (2, 4, 6)).with_counts((160, 130, 98))
    assert spec.counts(Keep.count(98)) == (160, 130, 98)
    assert spec.counts(Keep.ratio(1.0)) == (196, 196, 196)
    assert PruneSpec((14, 14), 12, (4,)).with_counts((98,)).counts(Keep.count(50)) == (50,)


@pytest.mark.parametrize("counts", [(160, 170, 98), (160, 98), (197, 160, 98), (160, 130, 0), (160, 98, 98), (160, 130, 130)])
def test_counts_that_grow_or_do_not_fit_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="196"):
        PruneSpec((14, 14), 12, (2, 4, 6)).with_counts(counts)


def test_appended_tokens_count_from_their_block_on() -> None:
    spec = PruneSpec((2, 2), 4, (3,), learnable_tokens=2, learnable_from_block=2)
    assert spec.tokens_by_block((1,)) == [5, 7, 4, 4]
    cost = Cost(embed_macs=0, token_macs=10, attention_macs=0, head_macs=0)
    assert cost.full_gmacs(spec) == pytest.approx(4 * 5 * 10 / 1e9)


def merging(patches_side: int = 4, first: int = 2, last: int = 4, depth: int = 6) -> PruneSpec:
    return PruneSpec((patches_side, patches_side), depth, tuple(range(first, last + 1)), method="merge")


def loop_lengths(spec: PruneSpec, counts: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Tokens in each block's attention and MLP, block by block."""
    now, entering, leaving = spec.patches, [], []
    for block in range(1, spec.depth + 1):
        entering.append(1 + now)
        if block in spec.locations:
            now = counts[spec.locations.index(block)]
        leaving.append(1 + now)
    return entering, leaving


def test_merging_leaves_at_least_half_of_the_patches_of_each_block() -> None:
    spec = merging()
    reachable = []
    for k in range(1, spec.patches + 1):
        before, fits = spec.patches, True
        for until in range(1, 4):
            after = spec.patches - (spec.patches - k) * until // 3
            fits, before = fits and before - after <= before // 2, after
        reachable.append(fits)
    assert spec.least_keep == reachable.index(True) + 1
    assert spec.counts(spec.least_keep)[-1] == spec.least_keep
    with pytest.raises(KeepError, match=str(spec.least_keep - 1)):
        spec.counts(spec.least_keep - 1)


@pytest.mark.parametrize("k", [16, 12, 7])
def test_merging_costs_attention_before_and_mlp_behind_it(k: int) -> None:
    spec = merging()
    cost = Cost(1000, 10, 3, 7, attention_token_macs=4, pair_macs=5)
    counts = spec.counts(k)
    entering, leaving = loop_lengths(spec, counts)
    assert (spec.tokens_by_block(counts), spec.tokens_leaving(counts)) == (entering, leaving)
    macs = 1000 + 7 + sum(n * 4 + n * n * 3 + m * 6 for n, m in zip(entering, leaving, strict=True))
    for n, m in zip(entering, leaving, strict=True):
        evens, odds = len(range(0, n, 2)), len(range(1, n, 2))
        macs += 5 * evens * odds if m < n else 0
    assert cost.pruned_gmacs(spec, counts) == pytest.approx(macs / 1e9)


def test_a_smaller_image_is_compared_with_the_native_one() -> None:
    spec = PruneSpec((3, 3), 2, (), method="none")
    cost = Cost(90, 10, 3, 7, native_tokens=17, native_embed_macs=160)
    assert spec.counts(Keep.ratio(1.0)) == ()
    assert cost.pruned_gmacs(spec, ()) == pytest.approx((90 + 7 + 2 * (10 * 10 + 100 * 3)) / 1e9)
    assert cost.full_gmacs(spec) == pytest.approx((160 + 7 + 2 * (17 * 10 + 17 * 17 * 3)) / 1e9)
    with pytest.raises(KeepError, match="keep = 8"):
        spec.counts(8)


@pytest.mark.parametrize("counts", [(12, 13, 8), (12, 5, 4), (12, 10), (0, 0, 0), (17, 10, 8)])
def test_counts_out_of_reach_are_rejected(counts: tuple[int, ...]) -> None:
    with pytest.raises(KeepError):
        merging().check_counts(counts)


@pytest.mark.parametrize(
    ("locations", "method", "learnable"), [((), "rank", 0), ((2,), "none", 0), ((6,), "merge", 0), ((2, 3), "merge", 4), ((2,), "drop", 0)]
)
def test_methods_and_locations_fit_together(locations: tuple[int, ...], method: str, learnable: int) -> None:
    with pytest.raises(ConfigError):
        PruneSpec((4, 4), 6, locations, learnable_tokens=learnable, method=method)
