"""Tail: the blocks behind the pruning location, in the arithmetic that ranks patches fastest on this machine."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.trainer.models.tower import VisionTower

_HEAD_WIDTH = 64


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" means on a device: "bf16" where it computes bfloat16 natively, else "fp32"; the others are themselves."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


class Tail:
    """A frozen tower from one block to its embedding, on any number of tokens.

    In "bf16" the attention and MLP of each block run as a bfloat16 copy, made once; norms, the residual stream and
    the head stay in float32. That is the arithmetic of autocast (equal in every bit with ViT-S/14 on a CPU) without
    converting every frozen weight again in each forward. A block that is bfloat16 throughout is a tenth faster, but it
    rounds the residual stream, and its ranking agreed less with float32 on five of six photographs.

    Args:
        tower: the image encoder.
        location: 1-based block that the tokens enter.
        precision: "fp32", "bf16" or "auto".

    Attributes:
        precision: "fp32" or "bf16", whichever runs.
        device: where the tower's tensors live.

    Raises:
        ConfigError: the tower has no such block.
    """

    def __init__(self, tower: VisionTower, location: int, precision: str = "auto") -> None:
        tower.check_location(location)
        self.tower = tower
        self.device = tower.device
        self.precision = resolve_precision(precision, self.device)
        blocks = list(tower.blocks)[location - 1 :]
        self.blocks = [_half(block) for block in blocks] if self.precision == "bf16" else blocks

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, tokens, D) float32 that enter the location -> embedding (batch, E) float32, L2-normalised."""
        for block in self.blocks:
            tokens = block(tokens)
        return functional.normalize(self.tower.head(tokens).float(), dim=-1)

    def sequence_bytes(self, tokens: int) -> int:
        """Memory of one sequence of `tokens` inside a block, in bytes: an estimate, for budgets."""
        item = 2 if self.precision == "bf16" else 4
        # Three float32 copies of the stream (before, norm, after), eight of its width inside (query, key, value; MLP
        # before and after its activation), and two attention maps for each head.
        stream = tokens * self.tower.width * (3 * 4 + 8 * item)
        return stream + 2 * item * tokens * tokens * max(1, self.tower.width // _HEAD_WIDTH)


def _half(block: nn.Module) -> nn.Module:
    """A copy of a block whose parts with matrices compute in bfloat16."""
    twin = copy.deepcopy(block)
    for part in twin.children():
        if any(parameter.dim() >= 2 for parameter in part.parameters()):
            part.to(torch.bfloat16)
            part.register_forward_pre_hook(_enter_half)
    return twin


def _enter_half(_part: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Query, key and value are one tensor and must stay one: only then PyTorch takes its fused attention, ten times
    # as fast in bfloat16 on a CPU as the way it takes for three tensors.
    converted = {id(tensor): tensor.to(torch.bfloat16) for tensor in inputs}
    return tuple(converted[id(tensor)] for tensor in inputs)
