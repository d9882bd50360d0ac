"""VisionTower: one view on every vision transformer that open_clip loads, in the pieces that pruning needs."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from prtool.errors import ConfigError, ModelError
from prtool.spec import MERGE, NONE, RANK, Cost, PruneSpec

Part = TypeVar("Part", bound=nn.Module)
PLACE = 4
"""Channels with the place of a patch, four so that tokens stay aligned."""


class VisionTower(nn.Module, ABC):
    """An image encoder as `embed -> blocks -> head`; the host library's own modules compute.

    Tokens are always `[prefix | patches | appended]`, patches row by row.

    Attributes:
        grid: rows and columns of patches.
        prefix_tokens: tokens before the patches: 0 for SigLIP, 1 for CLIP, more with registers.
        has_cls: the first prefix token is a class token, not a register.
        width: channels D of a token.
        embed_dim: channels E of an embedding.
        image_size: height and width of the pixels.
        patch_size: height and width of a patch in pixels.
        head_reads: tokens, from the front, that the head reads: 1 with CLS pooling; 0 where it reads all.
        token_width: channels of a token between the blocks: D, and with rotary positions `PLACE` more, which say the number of its
            patch, so that whatever drops, reorders or stores tokens moves it along.
    """

    grid: tuple[int, int]
    prefix_tokens: int
    has_cls: bool
    width: int
    embed_dim: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    head_reads: int
    _native_cost: tuple[int, int] = (0, 0)

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, each (batch, tokens, D) -> (batch, tokens, D) for any number of tokens."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels (batch, 3, height, width), RGB, normalised -> tokens (batch, prefix + N, D) that enter the first block: position embedding and
        first norm applied.
        """

    @abstractmethod
    def pre_norm(self, tokens: Tensor) -> Tensor:
        """The norm before the first block, for tokens (..., D) that are appended after `embed`; the identity where there is none."""

    @abstractmethod
    def block(self, index: int, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """One block, numbered from 0: (batch, tokens, D) -> (batch, tokens, D).

        `mask` (batch, tokens) float32 is added to every head's products with the key of that token before the softmax; gradients to
        it need `attention_with_gradients`.
        """

    @abstractmethod
    def head(self, tokens: Tensor) -> Tensor:
        """Final norm, pooling and projection: (batch, tokens, D) -> (batch, E), not normalised."""

    @abstractmethod
    def queries_keys(self, index: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled queries and keys, (batch, heads, tokens, head width) each, of one block's attention, numbered from 0.

        `tokens` (batch, tokens, D) enter the block; the softmax of the product is the attention map.
        """

    @abstractmethod
    def own_cost(self) -> Cost:
        """MACs of the tower at its image size, without scorer."""

    @abstractmethod
    def at_size(self, side: int) -> "VisionTower":
        """`resized` without its checks."""

    def cost(self) -> Cost:
        """MACs of the tower, without scorer, and those of the native tower where this one was resized."""
        tokens, embed = self._native_cost
        return replace(self.own_cost(), native_tokens=tokens, native_embed_macs=embed)

    def resized(self, side: int) -> "VisionTower":
        """The tower for square images of `side` pixels; itself at its own size.

        It shares every tensor but the positions. These are interpolated by the host library as it does for a model made at that size
        (open_clip's `force_image_size`, timm's `img_size`: bicubic with antialiasing).

        Raises:
            ConfigError: `side` is no multiple of the patch, or larger than the tower's own.
            ModelError: the tower's images are not square, or it was resized before.
        """
        self.check_size(side)
        if self.image_size == (side, side):
            return self
        tower = self.at_size(side)
        tower._native_cost = (self.prefix_tokens + self.patches, self.own_cost().embed_macs)
        return tower

    def check_size(self, side: int) -> None:
        """The checks of `resized`; they need no values, so the tower may be on the device "meta"."""
        (height, width), sizes = self.image_size, self.smaller_sizes
        if height != width:
            shape = f"{height} x {width} px"
            raise ModelError(f"image_size = {side}, but the encoder reads images of {shape}, and only square ones are resized; leave it out")
        if self._native_cost != (0, 0):
            raise ModelError(f"the image tower was resized to {height} px before, and would interpolate its positions twice; resize the native one")
        if side != height and side not in sizes:
            steps = f"{sizes[0]} to {sizes[-1]} px in steps of its patch, {sizes[0]} px, or of " if sizes else ""
            near = min(sizes or (height,), key=lambda size: abs(size - side))
            raise ConfigError(
                f"image_size = {side}, but the encoder reads images of {steps}its native size, {height} px; give {near}, or 0 for the native size"
            )

    @property
    def smaller_sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the smaller square images that it can be resized to, rising."""
        height, step = self.image_size[0], math.lcm(*self.patch_size)
        # A native size that is no multiple has as many patches as the multiple below it, which is no smaller image then.
        return tuple(range(step, height - height % step, step))

    def gmacs_at(self, side: int) -> float:
        """10^9 MAC of the tower on a square image of `side` pixels; the patch embedding counts in proportion to the patches."""
        cost, patches = self.own_cost(), (side // self.patch_size[0]) * (side // self.patch_size[1])
        return replace(cost, embed_macs=cost.embed_macs * patches // self.patches).gmacs([self.prefix_tokens + patches] * self.depth)

    @property
    def token_width(self) -> int:  # noqa: D102 - as the class says
        return self.width

    @property
    def rotary(self) -> bool:
        """Whether blocks rotate queries and keys by the place of a patch; then patches can drop, but a merged one would have no place."""
        return self.token_width != self.width

    def features(self, tokens: Tensor) -> Tensor:
        """(..., token_width) -> (..., D)."""
        return tokens

    def without_place(self, values: Tensor) -> Tensor:
        """Appended tokens, which have no place: (..., D) -> (..., token_width)."""
        return values

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return next(self.parameters()).device

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def patches(self) -> int:
        """N, the number of patches."""
        return self.grid[0] * self.grid[1]

    def prune_spec(self, locations: tuple[int, ...] = (4,), learnable_tokens: int = 0, method: str = RANK) -> PruneSpec:
        """The PruneSpec of this tower.

        Args:
            locations: 1-based blocks on entry to which patches drop; with method "merge" the first block in which they merge, and the last
                where two are given, else the last but one of the tower; of no effect with "none".
            learnable_tokens: appended from block 1 on.
            method: of `prtool.spec.METHODS`.

        Raises:
            ConfigError: a location is not among the blocks, or merging would begin behind its end.
        """
        if method == MERGE:
            first, last = locations[0], locations[1] if len(locations) > 1 else self.depth - 1
            if not 1 <= first <= last < self.depth:
                raise ConfigError(f"merging in blocks {first} to {last}, but the encoder merges in blocks 1 to {self.depth - 1}; give others")
            locations = tuple(range(first, last + 1))
        return PruneSpec(self.grid, self.depth, () if method == NONE else locations, self.prefix_tokens, learnable_tokens, method=method)

    def run_blocks(self, tokens: Tensor, first: int, last: int) -> Tensor:
        """Runs blocks `first` to `last`, 1-based and inclusive; (batch, tokens, D) in and out."""
        return self.through(self.blocks[first - 1 : last], tokens)

    def through(self, blocks: Iterable[nn.Module], tokens: Tensor) -> Tensor:
        """Runs blocks of this tower, or copies of some: (batch, tokens, token_width) in and out."""
        for block in blocks:
            tokens = block(tokens)
        return tokens

    def run_pre(self, pixels: Tensor, location: int) -> Tensor:
        """Tokens (batch, prefix + N, D) that enter the 1-based block `location`."""
        self.check_location(location)
        return self.run_blocks(self.embed(pixels), 1, location - 1)

    def run_post(self, tokens: Tensor, location: int) -> Tensor:
        """Runs block `location` to the last and the head on any number of tokens: (batch, E), not normalised."""
        return self.head(self.run_blocks(tokens, location, self.depth))

    def forward(self, pixels: Tensor) -> Tensor:
        """The unpruned embedding (batch, E), not normalised."""
        return self.run_post(self.embed(pixels), 1)

    def check_location(self, location: int) -> None:
        """Raises ConfigError unless `location` is a 1-based block of this tower."""
        if not 1 <= location <= self.depth:
            raise ConfigError(f"location = {location}, but the encoder has blocks 1 to {self.depth}")


class TowerEncoder(nn.Module):
    """What is around a tower: the end of each reducer's encoder.

    Attributes:
        unit_length: embeddings are L2-normalised; False gives them as the head does.
    """

    tower: VisionTower
    unit_length = True

    def _embedding(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, D) behind the last block -> embedding (batch, E)."""
        found = self.tower.head(tokens)
        return functional.normalize(found, dim=-1) if self.unit_length else found


def sharing_copy(module: Part, leave_out: nn.Module | None = None) -> Part:
    """A copy of a module that shares its parameters and buffers; an identity stands for the part `leave_out`."""
    known: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    if leave_out is not None:
        known[id(leave_out)] = nn.Identity()
    return copy.deepcopy(module, known)


def matrix_weights(module: nn.Module) -> int:
    """Number of weights in a module's matrices: its MACs for one token."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() >= 2)


def split_heads(projected: Tensor, heads: int) -> Tensor:
    """(batch, tokens, heads x width) -> (batch, heads, tokens, width)."""
    return torch.unflatten(projected, -1, (heads, -1)).transpose(1, 2)


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: "bf16" where that is faster, on GPUs that compute it and CPUs with AMX, else "fp32".

    AVX512-BF16 alone is slower than float32: a training step of ViT-S/14 takes 1.7 times as long in PyTorch 2.15.
    """
    if precision != "auto":
        return precision
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def attention_with_gradients(device: torch.device) -> AbstractContextManager[object]:
    """PyTorch's attention in a form whose mask may be all that needs gradients; on a CPU every form is one.

    CUDA's memory-efficient kernel keeps nothing for its backward pass where queries, keys and values need no gradients,
    and then fails there ("LSE is not correctly aligned"; pytorch #148476). The flash kernel takes no mask.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()
