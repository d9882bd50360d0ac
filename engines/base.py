"""What an engine is: one loaded graph that turns named arrays into named arrays."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from prtool.errors import ConfigError, EngineError, ShapeError
from prtool.manifest import GraphSpec, TensorSpec
from prtool.records import check_value
from prtool.text_safety import printable

if TYPE_CHECKING:
    from prtool.engines.pytorch.arrays import TorchArrays

_Loaded = TypeVar("_Loaded")
Array = npt.NDArray[Any]
DeviceArray = Any
"""An array on an engine's device: a torch tensor, as its `arrays` makes them."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What really runs: engine name, its library's version, and the device, for people."""

    name: str
    version: str
    device: str


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Smallest, optimal and largest size of one dynamic axis, for engines that compile ahead (TensorRT profiles)."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ConfigError(f"shape range {self.min}:{self.opt}:{self.max}, but MIN:OPT:MAX must rise from at least 1")


Profile = dict[str, ShapeRange]
"""One range of shapes that an engine is compiled for: the name of a dynamic axis ("batch", "tokens") -> its sizes,
and of each value of an input that is itself a shape ("k"; of several "k[1]", "k[2]", ...) -> that value."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an engine that compiles ahead is built; the others ignore it.

    Attributes:
        batch: images per call; other batches are rejected.
        keeps: patches kept, a narrow profile for each count; () builds one profile over every count of the bundle.
        level: the builder's optimisation level, 0 (fast to build) to 5 (fast to run).
        workspace_mib: maximum scratch memory on the device, in MiB; 0 leaves it to the library.
        timing_cache: keep the builder's measurements, for quicker builds of the next engines.
        version_compatible: the file also loads in later versions of the library, at some speed.
        hardware_compatible: the file also loads on other GPUs of the same or a later generation, at some speed.
        strip_weights: leave the weights out of the file; they are put back from the ONNX file when it is loaded.
    """

    batch: ShapeRange = ShapeRange(1, 8, 32)
    keeps: tuple[int, ...] = ()
    level: int = 3
    workspace_mib: int = 0
    timing_cache: bool = True
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip_weights: bool = False

    def __post_init__(self) -> None:
        check_value("level", self.level, minimum=0, maximum=5)
        check_value("workspace_mib", self.workspace_mib, minimum=0)
        check_value("keeps", self.keeps, minimum=1)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs; the precision is an argument of its own wherever one is asked for.

    Attributes:
        threads: CPU threads of one call; 0 takes what the machine grants this process.
        spinning: idle CPU threads wait actively, which helps where the cores are otherwise idle and hurts where others want them.
        streams: parts that a batch is cut into and that run side by side on a CPU, each on its share of the threads.
        device: number of the GPU, from 0.
        cache: folder of built engines; None takes `prtool.engines.cache.store.default_root()`.
        build: how an engine that compiles ahead is built.
    """

    threads: int = 0
    spinning: bool = True
    streams: int = 1
    device: int = 0
    cache: Path | None = None
    build: BuildOptions = BuildOptions()

    def __post_init__(self) -> None:
        minima = {"threads": (0, "0 (all) or more"), "streams": (1, "1 or more"), "device": (0, "0 or more: GPUs are counted from 0")}
        for name, (low, possible) in minima.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
                raise ConfigError(f"{name} = {printable(repr(value))}, but it must be a whole number, {possible}")
        kinds = {"spinning": (bool, "True or False"), "cache": (str | Path | None, "a folder's path"), "build": (BuildOptions, "a BuildOptions")}
        for name, (kind, possible) in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise ConfigError(f"{name} = {printable(repr(value))}, but it must be {possible}")
        if self.cache is not None:
            object.__setattr__(self, "cache", Path(self.cache))


@dataclass(frozen=True, slots=True)
class GraphOptions(EngineOptions):
    """How one graph is opened: the caller's options, and what was chosen with its bundle.

    Attributes:
        precision: the arithmetic asked for ("fp32", "fp16", "bf16", "int8"); the engine's row of the registry says which it has.
        profiles: the shapes to compile for, in the order of preference.
    """

    precision: str = "fp32"
    profiles: tuple[Profile, ...] = ()

    @classmethod
    def of(cls, options: EngineOptions, precision: str, profiles: tuple[Profile, ...]) -> Self:
        """The caller's options at a precision, for these shapes."""
        return cls(**{item.name: getattr(options, item.name) for item in fields(EngineOptions)}, precision=precision, profiles=profiles)


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


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """An engine whose arrays can stay on its device between two graphs."""

    @property
    def arrays(self) -> "TorchArrays":
        """How arrays on this engine's device are made, selected and read; engines of one device share it."""
        ...

    def run_device(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Runs the graph once, on the current stream of `arrays`, and returns without waiting for it.

        Args:
            inputs: one array on the device for each graph input, contiguous, of the declared dtype and shape; an
                input that is itself a shape ("k") is a numpy array.

        Returns:
            Arrays on the device, ready for more work on the same stream. They belong to the caller.

        Raises:
            ShapeError: a name, dtype or shape differs from the graph's, or lies outside what was built.
            EngineError: the engine failed.
        """
        ...


def reason(cause: BaseException, lines: int = 8) -> str:
    """What a library says of its failure, on one line of limited length: its first lines that are not empty, or the kind of the failure."""
    found = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return printable("; ".join(found[:lines]), 400) or type(cause).__name__


def opened(loaded: _Loaded | None, graph: str) -> _Loaded:
    """What an engine holds of a graph; raises EngineError where it was closed, and holds None."""
    if loaded is None:
        raise EngineError(f"{graph} is closed; open it again to run it")
    return loaded


def check_file(model_path: Path) -> None:
    """Raises EngineError where there is no such graph file."""
    if not model_path.is_file():
        raise EngineError(f"{model_path} is missing; copy the whole bundle again, or export it again")


def check_signature(model_path: Path, found: Iterable[str], inputs: Sequence[TensorSpec]) -> None:
    """Raises EngineError where the input names of a loaded graph are not the declared ones."""
    names, declared = sorted(found), sorted(spec.name for spec in inputs)
    if names != declared:
        raise EngineError(
            f"{model_path} takes {', '.join(names) or 'nothing'}, but it was declared to take {', '.join(declared)}; copy or export the bundle again"
        )


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array], graph: str) -> None:
    """Raises ShapeError where a name, dtype, rank or axis is not as declared; symbolic axes must agree with each other."""
    names = [spec.name for spec in specs]
    if sorted(names) != sorted(inputs):
        raise ShapeError(f"{graph} takes {', '.join(names)}, but it was given {', '.join(inputs) or 'nothing'}")
    sizes: dict[str, int] = {}
    for spec in specs:
        array = inputs[spec.name]
        if array.dtype != np.dtype(spec.dtype):
            raise ShapeError(f"{graph}: {spec.name} has dtype {array.dtype}, but the graph takes {spec.dtype}; use .astype({spec.dtype!r})")
        if wanted := _unlike(spec, array.shape, sizes):
            raise ShapeError(f"{graph}: {spec.name} has shape {tuple(array.shape)}, but the graph takes {wanted}")
        if 0 in array.shape:
            raise ShapeError(f"{graph}: {spec.name} has shape {tuple(array.shape)}, which holds nothing; give at least one item")


def check_outputs(graph: GraphSpec, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
    """Raises EngineError where a name, dtype, rank or axis that a graph gave is not as declared; symbolic axes must agree with the inputs'.

    `inputs` have passed `check_inputs`. Only shapes and dtypes are looked at, so arrays on a device are not waited for.
    """
    names = [spec.name for spec in graph.outputs]
    if sorted(names) != sorted(outputs):
        raise EngineError(f"{graph.file} gave {', '.join(outputs) or 'nothing'}, but it was declared to give {', '.join(names)}; {_UNLIKE_DECLARED}")
    sizes = {axis: n for spec in graph.inputs for axis, n in zip(spec.shape, inputs[spec.name].shape, strict=True) if isinstance(axis, str)}
    for spec in graph.outputs:
        array = outputs[spec.name]
        # The names of torch's dtypes are numpy's behind "torch."; what is no array at all (a sequence) has neither dtype nor shape.
        dtype = str(getattr(array, "dtype", type(array).__name__)).removeprefix("torch.")
        shape = tuple(getattr(array, "shape", ()))
        wanted = _unlike(spec, shape, sizes)
        if dtype != spec.dtype or wanted:
            raise EngineError(
                f"{graph.file} gave {spec.name} as {dtype} of shape {_shape_text(shape)}, but {spec.dtype} of shape {wanted or _shape_text(shape)} "
                f"was expected; {_UNLIKE_DECLARED}"
            )


_UNLIKE_DECLARED = "do not use this result: export the bundle again, or take another engine"


def _unlike(spec: TensorSpec, shape: Sequence[int], sizes: dict[str, int]) -> str:
    """The shape that was wanted where `shape` is another, else ""; notes the sizes of symbolic axes, which hold for the tensors after it."""
    wanted = [sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape]
    if len(shape) != len(wanted) or any(axis != n for axis, n in zip(wanted, shape, strict=True) if not isinstance(axis, str)):
        return _shape_text(wanted)
    sizes.update({axis: n for axis, n in zip(spec.shape, shape, strict=True) if isinstance(axis, str)})
    return ""


def _shape_text(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(str(axis) for axis in shape) + ")"
