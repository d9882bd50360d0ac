"""What training, export, engines and runtime share: where tokens are dropped, how many stay, how pixels are made, what it costs."""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real

from prtool.errors import ConfigError, KeepError
from prtool.records import check_value
from prtool.text_safety import printable

RESIZE_MODES = ("shortest", "longest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
CROP_ROUNDINGS = ("nearest", "floor")
MAX_RESIZE_RATIO = 8.0
RANK, MERGE, NONE = METHODS = ("rank", "merge", "none")
"""What shortens the sequence: dropping the lowest ranked patches, merging similar ones, or nothing but a smaller image."""

# Far above any encoder, and small enough that every product of sizes stays harmless; docs/bundle-format.md, section 8.
MAX_BLOCKS = 1000
MAX_GRID_SIDE = 1024
MAX_EXTRA_TOKENS = 4096
MAX_IMAGE_SIDE = 8192
MAX_IMAGE_PIXELS = 1 << 24
_MIN_FLOAT32, _MAX_FLOAT32 = 1.2e-38, 3.4e38


def plain_number(value: object) -> int | float | None:
    """numpy's and other libraries' numbers as Python's; None for what is no real number, True and False among it."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, float):
        return value
    # By its digits: numpy's float32(0.7) is meant as 0.7, and its exact value would round another way.
    return float(str(value)) if isinstance(value, Real) else None


@dataclass(frozen=True, slots=True)
class Keep:
    """How many patches stay: a ratio of all of them, or a count. Made by `ratio`, `count` or `parse`."""

    value: float
    is_count: bool

    @classmethod
    def ratio(cls, value: float) -> "Keep":
        """A share of all patches, 0 < value <= 1."""
        number = plain_number(value)
        if number is None or not 0.0 < number <= 1.0:
            raise KeepError(f"keep ratio = {printable(value)}, but it must be a number above 0.0 and at most 1.0 (1.0 keeps every patch)")
        return cls(float(number), is_count=False)

    @classmethod
    def count(cls, value: int) -> "Keep":
        """A number of patches, at least 1."""
        number = plain_number(value)
        if not isinstance(number, int) or number < 1:
            raise KeepError(f"keep count = {printable(value)}, but it must be a whole number, and at least 1 patch must be kept")
        return cls(number, is_count=True)

    @classmethod
    def of(cls, value: "Keep | float | int") -> "Keep":
        """A float is a ratio, an int a count. The int 1 is rejected: it reads as either."""
        if isinstance(value, Keep):
            return value
        number = plain_number(value)
        if number is None:
            raise KeepError(f"keep = {printable(repr(value))}, but it must be a ratio (0.6), a count (118) or a Keep")
        if isinstance(number, float):
            return cls.ratio(number)
        if number == 1:
            raise KeepError("keep = 1 reads as a ratio or as a count; write 1.0 for every patch, Keep.count(1) for one patch")
        return cls.count(number)

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """Reads "0.6" as a ratio and "118" as a count.

        Raises:
            KeepError: the text is neither, or out of range.
        """
        text = text.strip()
        if text.isascii() and text.isdigit():
            return cls.of(int(text))
        try:
            value = float(text)
        except ValueError as cause:
            raise KeepError(f"keep = {text!r}, but it must be a ratio such as 0.6 or a count such as 118") from cause
        return cls.ratio(value)

    def resolve(self, patches: int) -> int:
        """The number of patches k that stay of `patches`: round half up, at least 1 (method: k = round(keep x N))."""
        if self.is_count:
            if self.value > patches:
                raise KeepError(f"keep count = {int(self.value)}, but the model has {patches} patches; give 1 to {patches}")
            return int(self.value)
        return max(1, math.floor(self.value * patches + 0.5))

    def __str__(self) -> str:
        return str(int(self.value)) if self.is_count else str(self.value)


@dataclass(frozen=True, slots=True)
class PruneSpec:
    """What shortens the token sequence, where, and which tokens never go.

    A token sequence is always `[prefix | patches | appended]`; only patches are candidates.

    Attributes:
        grid: rows and columns of patches; their product is N.
        depth: number of transformer blocks.
        locations: 1-based and increasing blocks: tokens drop on entry to them (rank), or merge inside them, between attention and MLP
            (merge). () with method "none", and with no other.
        prefix_tokens: tokens before the patches (CLS, registers), always kept.
        learnable_tokens: learnable tokens after the patches, always kept; 0 unless patches are ranked.
        learnable_from_block: 1-based block on entry to which those are appended, the first location at the latest.
        drop_ratios: how many of the patches go at each location, in relation to each other; empty for equal numbers.
        method: of `METHODS`.
    """

    grid: tuple[int, int]
    depth: int
    locations: tuple[int, ...] = (4,)
    prefix_tokens: int = 1
    learnable_tokens: int = 0
    learnable_from_block: int = 1
    drop_ratios: tuple[int, ...] = ()
    method: str = RANK

    def __post_init__(self) -> None:
        check_value("depth", self.depth, minimum=1, maximum=MAX_BLOCKS)
        check_value("grid", self.grid, minimum=1, maximum=MAX_GRID_SIDE)
        check_value("prefix_tokens", self.prefix_tokens, minimum=0, maximum=MAX_EXTRA_TOKENS)
        check_value("learnable_tokens", self.learnable_tokens, minimum=0, maximum=MAX_EXTRA_TOKENS)
        check_value("prune method", self.method, choices=METHODS)
        # Behind the last block's attention the head reads no patch.
        check_value("prune locations", self.locations, minimum=1, maximum=self.depth - (self.method == MERGE))
        if bool(self.locations) == (self.method == NONE) or any(later <= earlier for earlier, later in itertools.pairwise(self.locations)):
            few = "give none with method 'none'" if self.method == NONE else "give at least one, and each must be above the one before it"
            raise ConfigError(f"prune locations = {printable(list(self.locations))}, but {few}")
        if self.method != RANK and self.learnable_tokens:
            raise ConfigError(f"{self.learnable_tokens} learnable tokens with prune method {self.method!r}, but only method 'rank' takes some")
        check_value("learnable_from_block", self.learnable_from_block, minimum=1, maximum=self.locations[0] if self.locations else 1)
        check_value("drop_ratios", self.drop_ratios, minimum=0, maximum=MAX_GRID_SIDE**2)
        if self.drop_ratios and (len(self.drop_ratios) != len(self.locations) or not self.drop_ratios[-1]):
            raise ConfigError(f"drop_ratios = {list(self.drop_ratios)}, but give {len(self.locations)}, one for each location, the last at least 1")

    @property
    def patches(self) -> int:
        """N, the number of patches before any is dropped."""
        return self.grid[0] * self.grid[1]

    @property
    def always_kept(self) -> int:
        """Tokens that come on top of the kept patches."""
        return self.prefix_tokens + self.learnable_tokens

    @property
    def least_keep(self) -> int:
        """The lowest number of patches that can be left: merging halves them at most in each block, and without a location all stay."""
        if self.method != MERGE:
            return 1 if self.locations else self.patches
        return bisect.bisect_left(range(1, self.patches), True, key=lambda k: self._merges_reach(self._counts(k))) + 1

    def counts(self, keep: Keep | int) -> tuple[int, ...]:
        """Patches that stay at each location: they go in proportion to `drop_ratios`, and the last location leaves `keep`.

        Args:
            keep: a Keep, or a number of patches k, 1 to N, that it was resolved to.

        Raises:
            KeepError: fewer patches than merging can leave, or any number but N without a location.
        """
        k = keep.resolve(self.patches) if isinstance(keep, Keep) else keep
        least, counts = self.least_keep, self._counts(k)
        if k < least or not self._merges_reach(counts):
            if self.method == NONE:
                raise KeepError(f"keep = {k} of {self.patches} patches, but method 'none' drops nothing; leave keep out, or give 1.0")
            raise KeepError(
                f"keep = {k} of {self.patches} patches, but merging in {len(self.locations)} blocks leaves at least {least}; "
                f"give {least} to {self.patches}"
            )
        return counts

    def _counts(self, k: int) -> tuple[int, ...]:
        dropped = self.patches - k
        dropped_until = list(itertools.accumulate(self.drop_ratios or (1,) * len(self.locations)))
        return tuple(self.patches - dropped * until // dropped_until[-1] for until in dropped_until)

    def patch_tokens_block(self, block: int) -> int:
        """The 1-based block whose patch tokens are given out, for a block that may be counted from the end: -1 the last, -2 the one before it.

        Raises:
            ConfigError: there is no such block, patches still drop behind it, or patches merge.
        """
        found = self.depth + 1 + block if block < 0 else block
        least = self.locations[-1] if self.locations else 1
        if self.method == MERGE:
            raise ConfigError(f"patch_tokens = {block}, but merged tokens stand for several patches each; give a run that ranks patches")
        if not least <= found <= self.depth:
            raise ConfigError(
                f"patch_tokens = {block}, but it must be a block from {least}, behind which no patch drops, to {self.depth}, or -1 to "
                f"{least - self.depth - 1} from the end (-2 is what LLaVA reads)"
            )
        return found

    def check_counts(self, counts: Sequence[int]) -> None:
        """Checks patches that are to stay at each location.

        Raises:
            KeepError: they are too many or too few, rise, leave none, or are out of reach of merging.
        """
        before = (self.patches, *counts)
        falling = len(counts) == len(self.locations) and all(0 < k <= first for first, k in zip(before, counts, strict=False))
        if not falling or not self._merges_reach(tuple(counts)):
            halved = ", each at least half of the one before" if self.method == MERGE else ""
            raise KeepError(
                f"keep counts {printable(list(counts))}, but the locations {', '.join(map(str, self.locations)) or '(none)'} take "
                f"{len(self.locations)} whole numbers that do not rise, from at most {self.patches} patches on{halved}, "
                f"such as {list(self._counts(max(self.least_keep, self.patches // 2)))}"
            )

    def _merges_reach(self, counts: tuple[int, ...]) -> bool:
        """Whether each block has the pairs for its merges: every second token joins another at most."""
        pairs = zip((self.patches, *counts[:-1]), counts, strict=True)
        return self.method != MERGE or all(first - after <= first // 2 for first, after in pairs)

    def distinct_counts(self, keeps: Sequence[Keep]) -> tuple[tuple[int, ...], ...]:
        """`counts` of several keeps that are compared; raises KeepError out of range, ConfigError where two are the same number of patches."""
        patches, found = [keep.resolve(self.patches) for keep in keeps], tuple(self.counts(keep) for keep in keeps)
        if len(set(patches)) != len(patches):
            listed = ", ".join(f"{keep} = {k} patches" for keep, k in zip(keeps, patches, strict=True))
            raise ConfigError(f"two keeps are the same number of {self.patches} patches ({listed}); give each once")
        return found

    def with_counts(self, counts: tuple[int, ...]) -> "PruneSpec":
        """The same locations with drops in the proportion of the given counts, which come back at the keep `counts[-1]`.

        Raises:
            ConfigError: the counts grow, are too many or too few, leave no patch, or drop none at last.
        """
        before = (self.patches, *counts[:-1])
        falling = all(0 < after <= first for first, after in zip(before, counts, strict=True))
        last_drops = bool(counts) and counts[-1] < (before[-1] if len(counts) > 1 else self.patches)
        if len(counts) != len(self.locations) or not falling or not last_drops:
            raise ConfigError(
                f"keep counts {list(counts)} at locations {list(self.locations)}, but they must fall from {self.patches} patches, "
                "one count for each location, and the last location must drop at least one patch"
            )
        self.check_counts(counts)
        return replace(self, drop_ratios=tuple(first - after for first, after in zip(before, counts, strict=True)))

    def tokens_by_block(self, counts: tuple[int, ...]) -> list[int]:
        """Tokens in the attention of each of the `depth` blocks, for the given patches kept at each location."""
        return self._lengths(counts, behind_attention=False)

    def tokens_leaving(self, counts: tuple[int, ...]) -> list[int]:
        """Tokens that leave each block: others than `tokens_by_block` where tokens merge inside it."""
        return self._lengths(counts, behind_attention=True)

    def _lengths(self, counts: tuple[int, ...], *, behind_attention: bool) -> list[int]:
        # What merges inside a block is gone on entry to the next one.
        later = int(self.method == MERGE and not behind_attention)
        left = {block + later: k for block, k in zip(self.locations, counts, strict=True)}
        kept, lengths = self.patches, []
        for block in range(1, self.depth + 1):
            kept = left.get(block, kept)
            lengths.append(self.prefix_tokens + kept + (self.learnable_tokens if block >= self.learnable_from_block else 0))
        return lengths

    def matched_pairs(self, counts: tuple[int, ...]) -> int:
        """Pairs of tokens whose similarity merging computes for one image: every second one of the class token and patches with the others."""
        if self.method != MERGE:
            return 0
        arriving = zip((self.patches, *counts[:-1]), counts, strict=True)
        return sum((patches + 2) // 2 * ((patches + 1) // 2) for patches, after in arriving if after < patches)


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates (MAC) of one image through the encoder.

    Attributes:
        embed_macs: patch embedding, once an image.
        token_macs: matrix products of one block, for each token.
        attention_macs: query-key and attention-value products of one block, for each pair of tokens.
        head_macs: pooling and projection, once an image.
        head_token_macs: attentional pooling, for each token that reaches it; 0 for CLS and average pooling.
        scorer_macs: the patch scorers of all locations, once an image; a later one counts as if no patch had dropped before it.
        last_block_queries: query tokens of the last block, where all others contribute keys and values only; 0 where every token is a query.
        kv_token_macs: keys and values of one block, for each token; used with `last_block_queries`.
        attention_token_macs: of `token_macs`, the attention's projections; the rest is behind the merging inside a block.
        pair_macs: similarity of two tokens that may merge: the width of a head.
        native_tokens, native_embed_macs: tokens and patch embedding of the unpruned encoder, where its images are larger than the pruned one's;
            0 where they are the same.
    """

    embed_macs: int
    token_macs: int
    attention_macs: int
    head_macs: int
    head_token_macs: int = 0
    scorer_macs: int = 0
    last_block_queries: int = 0
    kv_token_macs: int = 0
    attention_token_macs: int = 0
    pair_macs: int = 0
    native_tokens: int = 0
    native_embed_macs: int = 0

    def gmacs(self, entering: Sequence[int], leaving: Sequence[int] = (), *, extra_macs: int = 0) -> float:
        """Cost of one image in 10^9 MAC.

        Args:
            entering: tokens in the attention of each block.
            leaving: tokens in the MLP of each block; () where they are the same.
            extra_macs: of scorers or matching.
        """
        behind = self.token_macs - self.attention_token_macs
        pairs = list(zip(entering, leaving or entering, strict=True))
        blocks = sum(n * self.attention_token_macs + n * n * self.attention_macs + m * behind for n, m in pairs[:-1])
        last = entering[-1]
        queries = min(self.last_block_queries or last, last)
        blocks += queries * (self.token_macs + last * self.attention_macs) + (last - queries) * self.kv_token_macs
        return (self.embed_macs + blocks + self.head_macs + last * self.head_token_macs + extra_macs) / 1e9

    def full_gmacs(self, spec: PruneSpec) -> float:
        """Cost of the unpruned encoder at its native size, with neither scorer nor learnable tokens."""
        tokens = self.native_tokens or spec.prefix_tokens + spec.patches
        return replace(self, embed_macs=self.native_embed_macs or self.embed_macs).gmacs([tokens] * spec.depth)

    def pruned_gmacs(self, spec: PruneSpec, counts: tuple[int, ...]) -> float:
        """Cost with `counts` patches kept at each location, with scorers and learnable tokens, or matching."""
        extra = spec.matched_pairs(counts) * self.pair_macs if spec.method == MERGE else self.scorer_macs
        return self.gmacs(spec.tokens_by_block(counts), spec.tokens_leaving(counts), extra_macs=extra)

    def theoretical_speedup(self, spec: PruneSpec, counts: tuple[int, ...]) -> float:
        """The MAC ratio: unpruned cost over the cost with `counts` patches kept at each location."""
        return self.full_gmacs(spec) / self.pruned_gmacs(spec, counts)


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes pixels: resize, centre crop, RGB in [0, 1], normalise.

    Attributes:
        size: height and width after the crop, in pixels.
        mean, std: per channel, in RGB order, for values in [0, 1].
        interpolation: PIL's filter, antialiased.
        resize_mode: "shortest" side to size, then crop; "longest" side, then pad with `fill`; "squash" both.
        fill: padding value 0 to 255, for "longest".
        crop_rounding: of the crop's left and top edge where half a pixel is over: "nearest", to the even one (torchvision, open_clip), or
            "floor" (transformers).
        resize_ratio: what "shortest" resizes to before the crop, relative to `size`: 256 / 224 for 224 pixels out of 256.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: int = 0
    crop_rounding: str = "nearest"
    resize_ratio: float = 1.0

    def __post_init__(self) -> None:
        check_value("resize_mode", self.resize_mode, choices=RESIZE_MODES)
        check_value("interpolation", self.interpolation, choices=INTERPOLATIONS)
        check_value("crop_rounding", self.crop_rounding, choices=CROP_ROUNDINGS)
        check_value("image size", self.size, minimum=1, maximum=MAX_IMAGE_SIDE)
        check_value("pixels of an image", math.prod(self.size), maximum=MAX_IMAGE_PIXELS)
        check_value("fill", self.fill, minimum=0, maximum=255)
        check_value("resize_ratio", self.resize_ratio, minimum=1.0, maximum=MAX_RESIZE_RATIO)
        if self.resize_ratio != 1.0 and self.resize_mode != "shortest":
            raise ConfigError(f'resize_ratio = {self.resize_ratio} with resize_mode = {self.resize_mode!r}, but only "shortest" crops; give 1')
        for mean, std in zip(self.mean, self.std, strict=True):
            if not (abs(mean) <= _MAX_FLOAT32 and _MIN_FLOAT32 <= std <= _MAX_FLOAT32 and max(abs(mean), abs(1.0 - mean)) / std <= _MAX_FLOAT32):
                raise ConfigError(f"mean = {mean}, std = {std}, but std must be above 0, and pixels of 0 and 1 must stay finite in float32")
