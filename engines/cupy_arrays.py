"""Arrays of CuPy on a CUDA device, the selection between two graphs there, and CUDA graphs.

Written against CuPy 13's documented interface and run only against a stand-in of it on NumPy: no GPU was at hand.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cupy  # pyright: ignore[reportMissingImports] - there is none without CUDA

from prtool.engines.base import Array, DeviceArray, Recording, reason
from prtool.errors import EngineError, KeepError, ShapeError

_WARM_UPS = 3
# What CuPy raises of itself; both are RuntimeErrors there, and MemoryError is the base of its OutOfMemoryError.
_FAILURES = (RuntimeError, MemoryError)


class CupyArrays:
    """An `ArrayLibrary` of CuPy arrays, which have no bfloat16; safe from many threads. `cupy_arrays` makes the one of a device.

    Work goes to the calling thread's current stream. NaN in scores and indices out of range are not checked, because the
    answer would have to be waited for.
    """

    def __init__(self, device: int) -> None:
        self._number = device

    @property
    def device(self) -> str:
        """ "cuda:0"."""
        return f"cuda:{self._number}"

    @property
    def stream(self) -> int:
        """The handle of the calling thread's current stream; 0 is the default stream."""
        with self._here():
            return int(cupy.cuda.get_current_stream().ptr)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A contiguous array whose content is not set, for an engine to write to.

        Raises:
            EngineError: the device has too little memory.
        """
        with self._here():
            return cupy.empty(shape, dtype)

    def to_device(self, array: object) -> DeviceArray:
        """A contiguous array on the device; see `ArrayLibrary.to_device`.

        Raises:
            ShapeError: the object is no array, or of a dtype that CuPy has not.
        """
        on_device = hasattr(array, "__dlpack_device__") and not hasattr(array, "__array_interface__")
        with self._here():
            try:
                return cupy.ascontiguousarray(cupy.from_dlpack(array) if on_device else cupy.asarray(array))
            except (TypeError, ValueError, BufferError) as cause:
                kind = f"{type(array).__name__} of {getattr(array, 'dtype', 'no dtype')}"
                raise ShapeError(f"a {kind} cannot become a CuPy array: {reason(cause, 1)}; give numpy, DLPack or CUDA arrays") from cause

    def to_host(self, array: DeviceArray) -> Array:
        """A numpy array; see `ArrayLibrary.to_host`."""
        with self._here():
            found: Array = cupy.asnumpy(array)
        return found.astype("float32") if found.dtype == "float16" else found

    def copy(self, array: DeviceArray) -> DeviceArray:
        """A new array of the same content."""
        with self._here():
            return array.copy()

    def select(self, scores: DeviceArray, k: int) -> DeviceArray:
        """The k patches with the highest scores; see `ArrayLibrary.select`.

        Raises:
            ShapeError: scores are not two-dimensional or not floating.
            KeepError: k is out of range.
        """
        if scores.ndim != 2 or scores.dtype.kind != "f":
            raise ShapeError(f"scores have shape {scores.shape} and dtype {scores.dtype}, but selection takes (batch, patches) of floats")
        patches = scores.shape[1]
        if not 1 <= k <= patches:
            raise KeepError(f"k = {k}, but there are {patches} patches to choose from; give 1 to {patches}")
        with self._here():
            # 0.0 - x turns both zeros into 0.0, so they are equal to every sort.
            return cupy.ascontiguousarray(cupy.argsort(0.0 - scores, axis=1, kind="stable")[:, :k])

    def gather(self, tokens: DeviceArray, indices: DeviceArray, prefix_tokens: int, learnable_tokens: int) -> DeviceArray:
        """The sequence with only the selected patches; see `ArrayLibrary.gather`.

        Raises:
            ShapeError: the shapes do not fit together.
        """
        if tokens.ndim != 3 or indices.ndim != 2 or len(indices) != len(tokens):
            raise ShapeError(f"tokens {tokens.shape} and indices {indices.shape} do not fit; they must be (batch, tokens, width) and (batch, k)")
        batch, length, width = tokens.shape
        with self._here():
            places = cupy.broadcast_to(cupy.arange(length), (batch, length))
            parts = (places[:, :prefix_tokens], indices + prefix_tokens, places[:, length - learnable_tokens :])
            rows = cupy.concatenate(parts, axis=1) + cupy.arange(batch)[:, None] * length
            return cupy.take(tokens.reshape(batch * length, width), rows, axis=0)

    def fence(self) -> Callable[[], None]:
        """Marks the end of what was asked for so far on this stream; calling the result makes the caller's stream wait for it."""
        with self._here():
            event = cupy.cuda.Event(disable_timing=True)
            event.record(cupy.cuda.get_current_stream())

        def wait() -> None:
            with self._here():
                cupy.cuda.get_current_stream().wait_event(event)

        return wait

    def capture(self, step: Callable[[], DeviceArray]) -> Recording:
        """A CUDA graph of `step`, in a memory pool of its own, so that nothing else is ever put where it writes.

        Raises:
            EngineError: `step` does something that cannot be recorded.
        """
        with self._here():
            pool = cupy.cuda.MemoryPool()
            side = cupy.cuda.Stream(non_blocking=True)
            self.fence_into(side)
            # The warm-up also fills the pool: CUDA hands out no new memory while it records.
            with cupy.cuda.using_allocator(pool.malloc), side:
                for _ in range(_WARM_UPS):
                    step()
                side.synchronize()
                side.begin_capture()
                result = step()
                graph = side.end_capture()
        return _Graph(self, graph, result, pool)

    def fence_into(self, stream: Any) -> None:  # noqa: ANN401 - cupy has no types
        """Makes a stream wait for what was asked for so far on the current one."""
        event = cupy.cuda.Event(disable_timing=True)
        event.record(cupy.cuda.get_current_stream())
        stream.wait_event(event)

    def synchronise(self) -> None:
        """Waits until the device is idle; see `ArrayLibrary.synchronise`."""
        with self._here():
            cupy.cuda.runtime.deviceSynchronize()

    @contextmanager
    def _here(self) -> Iterator[None]:
        """The device is the current one; CuPy's failures are mapped."""
        try:
            with cupy.cuda.Device(self._number):
                yield
        except _FAILURES as cause:
            raise EngineError(f"CuPy failed on {self.device}: {reason(cause, 1)}") from cause


class _Graph:
    """A CUDA graph, the array that it writes, and the pool that holds its memory."""

    def __init__(self, arrays: CupyArrays, graph: Any, result: DeviceArray, pool: Any) -> None:  # noqa: ANN401
        self._arrays = arrays
        self._graph = graph
        self._result = result
        self._pool = pool

    def replay(self) -> DeviceArray:
        try:
            self._graph.launch(cupy.cuda.get_current_stream())
        except _FAILURES as cause:
            raise EngineError(f"a CUDA graph on {self._arrays.device} failed: {reason(cause, 1)}") from cause
        return self._result


def device_count() -> int:
    """CUDA devices that CuPy finds; 0 where there is no driver."""
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except RuntimeError:
        return 0


@functools.cache
def cupy_arrays(device: int) -> CupyArrays:
    """The arrays of a device; the same object for all engines of that device."""
    return CupyArrays(device)
