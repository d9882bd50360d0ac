"""A stand-in for TensorRT's runtime on host memory, with the method names of its Python API.

It reads and writes memory by the addresses it is given, and computes with another engine: a wrong address, shape,
profile or stream gives a wrong result or an error.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from models import TinyModel

from prtool.bundle import Bundle
from prtool.engines.base import Engine, Profile
from prtool.engines.profiles import is_shape_input
from prtool.errors import EngineError

MODEL = TinyModel()
SCRATCH = 1 << 10


@dataclass
class HostArrays:
    """`CudaTorchArrays` on host memory: numpy arrays with an address, and streams that are numbers."""

    stream: int = 7
    room: int = 1 << 30
    made: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    waits: int = 0
    device: str = "cuda:0"
    records: bool = True

    def to_device(self, array: Any) -> "HostArray":
        return np.array(array).view(HostArray)

    def to_host(self, array: "HostArray") -> np.ndarray:
        return np.asarray(array)

    def empty(self, shape: tuple[int, ...], dtype: str) -> "HostArray":
        made = np.full(shape, 77, dtype).view(HostArray)
        if made.nbytes > self.room:
            raise RuntimeError("CUDA out of memory")
        self.made.append((shape, dtype))
        return made

    def synchronise(self) -> None:
        self.waits += 1

    def select(self, scores: Any, k: int) -> Any:
        raise NotImplementedError

    def gather(self, tokens: Any, indices: Any, prefix_tokens: int, learnable_tokens: int) -> Any:
        raise NotImplementedError

    def capture(self, step: Callable[[], Any]) -> Any:
        raise NotImplementedError


class HostArray(np.ndarray):
    """An array whose memory only `data_ptr` tells, as a torch tensor's."""

    def data_ptr(self) -> int:
        return int(self.ctypes.data)

    def is_contiguous(self) -> bool:
        return bool(self.flags.c_contiguous)


class Library:
    """One plan of the stand-in library."""

    def __init__(self, reference: Engine, bundle: Bundle, role: str, built: tuple[Profile, ...]) -> None:
        self.reference = reference
        self.graph = bundle.graph(role)
        self.built = built
        self.contexts: list[Context] = []
        self.calls: list[str] = []
        self.refuses = ""

    def new_context(self) -> "Context | None":
        if self.refuses == "new_context":
            return None
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def failure(self, problem: str) -> EngineError:
        return EngineError(f"{problem}: the reason")


class Context:
    """IExecutionContext, as far as it is used."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.profile: int | None = None
        self.scratch: tuple[int, int] | None = None
        self.streams: list[int] = []

    def _did(self, name: str) -> bool:
        self.library.calls.append(name)
        return self.library.refuses != name

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        self.streams.append(stream_handle)
        return self._did("set_optimization_profile_async")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "the profile comes first"
        self.shapes[name] = shape
        return self._did("set_input_shape")

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return self._did("set_tensor_address")

    def infer_shapes(self) -> Sequence[str]:
        self.library.calls.append("infer_shapes")
        names = [spec.name for spec in self.library.graph.inputs]
        return [name for name in names if name not in self.shapes and name not in self.addresses]

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        spec = next(spec for spec in self.library.graph.outputs if spec.name == name)
        values = {"patches": MODEL.patches}
        for known in self.library.graph.inputs:
            values |= {axis: n for axis, n in zip(known.shape, self.shapes.get(known.name, ()), strict=False) if isinstance(axis, str)}
        values.setdefault("tokens", MODEL.patches + MODEL.prefix_tokens)
        return [values[axis] if isinstance(axis, str) else axis for axis in spec.shape]

    def update_device_memory_size_for_shapes(self) -> int:
        return SCRATCH * self.shapes[self.library.graph.inputs[0].name][0]

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._did("execute_async_v3"):
            return False
        assert self.scratch is not None
        ctypes.memset(self.scratch[0], 99, self.scratch[1])
        self.streams.append(stream_handle)
        feed = {spec.name: self._read(spec.name, spec.dtype, self._shape(spec.name, spec.shape)) for spec in self.library.graph.inputs}
        self._check_profile(feed)
        for name, array in self.library.reference.run(feed).items():
            ctypes.memmove(self.addresses[name], array.ctypes.data, array.nbytes)
        return True

    def _shape(self, name: str, declared: tuple[int | str, ...]) -> tuple[int, ...]:
        return self.shapes.get(name) or tuple(int(axis) for axis in declared)

    def _read(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        array = np.empty(shape, dtype)
        ctypes.memmove(array.ctypes.data, self.addresses[name], array.nbytes)
        return array

    def _check_profile(self, feed: Mapping[str, np.ndarray]) -> None:
        assert self.profile is not None
        allowed = self.library.built[self.profile]
        sizes = {axis: n for spec in self.library.graph.inputs for axis, n in zip(spec.shape, feed[spec.name].shape, strict=True)}
        sizes |= {spec.name: int(feed[spec.name][0]) for spec in self.library.graph.inputs if is_shape_input(spec)}
        assert all(limits.min <= sizes[name] <= limits.max for name, limits in allowed.items()), (sizes, allowed)
