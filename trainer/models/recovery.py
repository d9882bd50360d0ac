"""Recovery: low-rank corrections of the blocks that see shortened sequences, folded into their weights.

Every matrix W of those blocks becomes W + s B A with B A of low rank (LoRA, Hu et al. 2021, section 4.1), every gain and bias b becomes
b + s d; s is one scale for all. Folded, the encoder has the tensors, the graph and the cost that it had before.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prtool.errors import CheckpointError
from prtool.trainer.models.tower import VisionTower, sharing_copy

Found = TypeVar("Found")
_JOINT = ("in_proj_weight", "qkv.weight")
"""Matrices that hold those of queries, keys and values one behind the other; each has a correction of its own."""


class Corrected(NamedTuple):
    """A parameter that is corrected: its key, the number of its 1-based block and its name there; and where it lies in the tower."""

    key: str
    name: str
    value: nn.Parameter


class Recovery(nn.Module):
    """The corrections of one tower; without training they change nothing.

    Args:
        tower: whose blocks are corrected; it stays as it is.
        first: 1-based block from which on they are.
        rank: of each matrix's correction.
        generator: of the first values.

    Attributes:
        scale: s; chosen after training.
    """

    def __init__(self, tower: VisionTower, first: int, rank: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.first, self.rank, self.scale = first, rank, 1.0
        for key, _, value in corrected(tower, first):
            name = _attribute(key)
            if value.dim() != 2:
                self.register_parameter(f"shift/{name}", nn.Parameter(torch.zeros_like(value)))
                continue
            parts = _parts(key)
            rows, columns = value.shape[0] // parts, value.shape[1]
            down = (2.0 * torch.rand(parts, rank, columns, generator=generator) - 1.0) / math.sqrt(columns)
            self.register_parameter(f"down/{name}", nn.Parameter(down.to(value.device)))
            self.register_parameter(f"up/{name}", nn.Parameter(torch.zeros(parts, rows, rank, device=value.device)))

    def weights(self, tower: VisionTower) -> dict[str, Tensor]:
        """The corrected parameters by their names in the tower, with gradients to the corrections."""
        return {name: value + self.scale * self._change(key) for key, name, value in corrected(tower, self.first)}

    def running(self, tower: VisionTower, run: Callable[[], Found]) -> Found:
        """What `run` returns while the tower has its corrected weights; gradients reach the corrections."""
        values = {f"tower.{name}": value for name, value in self.weights(tower).items()}
        # Blocks share no parameter, and with tie_weights PyTorch would swap those of timm's towers, which have two names, twice, and
        # leave the corrected ones behind.
        return cast(Found, functional_call(_Held(tower), values, (run,), tie_weights=False))

    @torch.no_grad()
    def folded(self, tower: VisionTower) -> VisionTower:
        """A copy of the tower with corrected weights, which shares every other tensor."""
        copied = sharing_copy(tower).eval()
        changed = {id(value): value + self.scale * self._change(key) for key, _, value in corrected(tower, self.first)}
        for module in copied.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                if id(value) in changed:
                    setattr(module, name, nn.Parameter(changed[id(value)], requires_grad=False))
        return copied

    def tensors(self) -> dict[str, Tensor]:
        """The corrections by kind and key, such as "up.4.mlp.c_fc.weight"."""
        return {_key(name): tensor.detach() for name, tensor in self.named_parameters()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes the values of `tensors`, as `tensors()` gives them.

        Raises:
            CheckpointError: they are those of another tower, first block or rank.
        """
        own = {_key(name): tensor for name, tensor in self.named_parameters()}
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            raise CheckpointError(
                f"the recovery has tensors of another encoder than this one from block {self.first} on at rank {self.rank}; run 'prtool train' again"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def _change(self, key: str) -> Tensor:
        name = _attribute(key)
        shift = getattr(self, f"shift/{name}", None)
        if shift is not None:
            return cast(Tensor, shift)
        up, down = (cast(Tensor, getattr(self, f"{kind}/{name}")) for kind in ("up", "down"))
        return (up @ down).flatten(0, 1)


class _Held(nn.Module):
    """A tower during `Recovery.running`."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, run: Callable[[], Found]) -> Found:
        return run()


def corrected(tower: VisionTower, first: int) -> Iterator[Corrected]:
    """The parameters of the 1-based blocks from `first` on, in their order."""
    names = {id(value): name for name, value in tower.named_parameters()}
    for number in range(first, tower.depth + 1):
        for name, value in tower.blocks[number - 1].named_parameters():
            yield Corrected(f"{number}.{name}", names[id(value)], value)


def _parts(key: str) -> int:
    return 3 if key.endswith(_JOINT) else 1


def _attribute(key: str) -> str:
    # Parameters of a module cannot have dots in their names.
    return key.replace(".", "/")


def _key(name: str) -> str:
    return name.replace("/", ".")
