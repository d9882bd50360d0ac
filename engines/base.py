"""What an engine is: one loaded graph that turns named arrays into named arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from prtool.errors import ConfigError, ShapeError
from prtool.manifest import TensorSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What really runs: engine name, its library's version, and the device in words."""

    name: str
    version: str
    device: str


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Least, usual and most size of one dynamic axis, for engines that compile ahead (TensorRT profiles)."""

    least: int
    usual: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.usual <= self.most:
            raise ConfigError(f"shape range {self.least}:{self.usual}:{self.most}, but it must rise from at least 1")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs.

    Attributes:
        threads: CPU threads of one call; 0 takes what the machine grants this process.
        spinning: idle CPU threads wait actively, which helps where the cores are otherwise idle and hurts where others want them.
        shapes: axis name -> range, for engines that compile ahead.
    """

    threads: int = 0
    spinning: bool = True
    shapes: Mapping[str, ShapeRange] | None = None

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ConfigError(f"threads = {self.threads}, but it must be 0 (all) or more")


@runtime_checkable
class Engine(Protocol):
    """One loaded graph. `run` may be called from many threads at once; outputs belong to the caller."""

    @property
    def info(self) -> EngineInfo:
        """What really runs."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph once.

        Args:
            inputs: one array for each graph input, contiguous, of the declared dtype and shape.

        Raises:
            ShapeError: a name, dtype or shape differs from the graph's.
            EngineError: the engine failed; the message has its reason.
        """
        ...

    def close(self) -> None:
        """Frees the graph; `run` fails afterwards. A second call does nothing."""
        ...


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array], graph: str) -> None:
    """Compares arrays with a graph's declared inputs.

    Raises:
        ShapeError: a name is missing or unknown, or a dtype, rank or axis differs; symbolic axes must agree with each other.
    """
    names = [spec.name for spec in specs]
    if sorted(names) != sorted(inputs):
        raise ShapeError(f"{graph} takes {', '.join(names)}, but it was given {', '.join(inputs) or 'nothing'}")
    sizes: dict[str, int] = {}
    for spec in specs:
        array = inputs[spec.name]
        if array.dtype != np.dtype(spec.dtype):
            raise ShapeError(f"{graph}: {spec.name} has dtype {array.dtype}, but the graph takes {spec.dtype}; use .astype({spec.dtype!r})")
        wanted = tuple(sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape)
        if array.ndim != len(wanted) or any(isinstance(w, int) and w != n for w, n in zip(wanted, array.shape, strict=True)):
            raise ShapeError(f"{graph}: {spec.name} has shape {tuple(array.shape)}, but the graph takes {_shape_text(wanted)}")
        if 0 in array.shape:
            raise ShapeError(f"{graph}: {spec.name} has shape {tuple(array.shape)}, which holds nothing; give at least one item")
        sizes.update({axis: n for axis, n in zip(spec.shape, array.shape, strict=True) if isinstance(axis, str)})


def _shape_text(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(str(axis) for axis in shape) + ")"
