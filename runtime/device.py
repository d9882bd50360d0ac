"""From pixels to embeddings without leaving the device: the same three ways, each whole chain recorded once and replayed.

One CUDA graph holds every graph of the bundle with the selections between them, so a call costs the host one launch.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np

from prtool.engines.base import Array, ArrayLibrary, DeviceArray, Recording
from prtool.engines.forks import track
from prtool.runtime.pipeline import Graphs, SplitPipeline, Stage, Steps, device_engine, split_steps
from prtool.spec import PruneSpec

# A recording holds the activations of its largest graph; at batch 256 of ViT-L/14 that is gigabytes.
MAX_RECORDINGS = 8
_Key = tuple[tuple[int, ...], str, tuple[int, ...]]


@runtime_checkable
class RecordingArrays(ArrayLibrary, Protocol):
    """Arrays whose `capture` records, so that a replay costs one launch; CUDA's have all of this."""

    def copy(self, array: DeviceArray) -> DeviceArray:
        """A new array of the same content."""
        ...

    def fence(self) -> Callable[[], None]:
        """Marks the end of what was asked for so far on the current stream; calling the result makes the caller's stream wait for it."""
        ...


class Recorder:
    """Runs one kind of work on a device; the second call with the same shapes records it, and later ones replay that.

    Safe from many threads and streams: a recording is used by one call at a time, and its memory is not written to before
    the call before has read its result.
    """

    def __init__(self, arrays: ArrayLibrary, work: Callable[[DeviceArray, tuple[int, ...]], DeviceArray], most: int = MAX_RECORDINGS) -> None:
        """Records nothing yet.

        Args:
            arrays: the device's arrays; those that cannot record have the work done anew in each call.
            work: pixels and counts to an array that belongs to the caller.
            most: recordings that are kept; the one that was longest not used goes first.
        """
        self._arrays = arrays if isinstance(arrays, RecordingArrays) else None
        self._work = work
        self._most = most
        self._slots: OrderedDict[_Key, _Slot] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, pixels: DeviceArray, counts: tuple[int, ...]) -> DeviceArray:
        """The work's result for these pixels; it belongs to the caller."""
        arrays = self._arrays
        if arrays is None:
            return self._work(pixels, counts)
        key = (tuple(pixels.shape), str(pixels.dtype), counts)
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None:
                self._slots.move_to_end(key)
        if slot is None:
            # The first call also shows whether the shapes are allowed, and lets engines set themselves up for them.
            result = self._work(pixels, counts)
            self._remember(key, arrays, counts)
            return result
        return slot.run(pixels)

    def clear(self) -> None:
        """Forgets every recording, once the device has finished with them."""
        with self._lock:
            dropped, self._slots = list(self._slots.values()), OrderedDict()
        for slot in dropped:
            slot.free()

    def _remember(self, key: _Key, arrays: RecordingArrays, counts: tuple[int, ...]) -> None:
        dropped = []
        with self._lock:
            self._slots.setdefault(key, _Slot(arrays, lambda static: self._work(static, counts)))
            while len(self._slots) > self._most:
                dropped.append(self._slots.popitem(last=False)[1])
        for slot in dropped:
            slot.free()


class _Slot:
    """One recording with the memory that it reads; made by the first call that uses it."""

    def __init__(self, arrays: RecordingArrays, work: Callable[[DeviceArray], DeviceArray]) -> None:
        self._arrays = arrays
        self._work = work
        self._recorded: tuple[DeviceArray, Recording] | None = None
        self._read: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def run(self, pixels: DeviceArray) -> DeviceArray:
        with self._lock:
            if self._read is not None:
                self._read()
            static, recording = self._recorded or self._record(pixels)
            static[...] = pixels
            result = self._arrays.copy(recording.replay())
            self._read = self._arrays.fence()
            return result

    def free(self) -> None:
        with self._lock:
            if self._recorded is not None:
                # Its memory may be given to others as soon as it is dropped, so nothing may still use it.
                self._arrays.synchronise()
                self._recorded = self._read = None

    def _record(self, pixels: DeviceArray) -> tuple[DeviceArray, Recording]:
        static = self._arrays.copy(pixels)
        self._recorded = (static, self._arrays.capture(lambda: self._work(static)))
        return self._recorded


class DeviceSteps:
    """The steps of a bundle's graphs on their device; see `prtool.runtime.pipeline.Steps`."""

    def __init__(self, graphs: Graphs, arrays: ArrayLibrary) -> None:
        self.run = graphs.run_device
        self.select = arrays.select
        self.gather = arrays.gather


class DevicePipeline:
    """One mode on the device; safe from many threads. Engines differ in their device and arrays, not in this."""

    def __init__(self, graphs: Graphs, mode: str) -> None:
        """Opens nothing yet.

        Args:
            graphs: a bundle's graphs on an engine whose engines are `DeviceEngine`s.
            mode: "fused", "split" or "full".
        """
        self._graphs = graphs
        self._first_role, self._way = _WAYS[mode]
        self._started: tuple[ArrayLibrary, Recorder] | None = None
        self._lock = threading.Lock()
        track(self)

    def embed(self, pixels: Array, counts: tuple[int, ...]) -> Array:
        """Encodes one batch from and to the host; see `Pipeline.embed`."""
        arrays, recorder = self._start()
        return arrays.to_host(recorder(arrays.to_device(pixels), counts))

    def embed_device(self, pixels: object, counts: tuple[int, ...]) -> DeviceArray:
        """Encodes one batch on the device, and returns without waiting for it.

        Args:
            pixels: (batch, 3, height, width) float32, an array of the engine's library, or anything with DLPack or the
                CUDA array interface.
            counts: patches kept at each location, falling.

        Returns:
            (batch, E) float32 on the device, L2-normalised; it belongs to the caller, and is ready for more work on the
            calling thread's current stream. Whether it is finite is not checked.
        """
        arrays, recorder = self._start()
        return recorder(arrays.to_device(pixels), counts)

    def forget(self) -> None:
        """Frees every recording, once the device has finished with them; call it before the graphs are closed."""
        with self._lock:
            started, self._started = self._started, None
        if started is not None:
            started[1].clear()

    def _start(self) -> tuple[ArrayLibrary, Recorder]:
        # In each call, because a recording would still run after the graphs are closed.
        engine = self._graphs.engine(self._first_role)
        with self._lock:
            if self._started is None:
                arrays = device_engine(engine).arrays
                steps, prune = DeviceSteps(self._graphs, arrays), self._graphs.bundle.manifest.prune
                self._started = (arrays, Recorder(arrays, lambda pixels, counts: self._way(steps, prune, pixels, counts)))
            return self._started


class DeviceSplitPipeline(SplitPipeline):
    """The split mode step by step, on the device; every step is finished before it is handed on, so that it can be timed."""

    def stages(self, pixels: Array, counts: tuple[int, ...]) -> Iterator[Stage]:
        """Runs one step each time the next stage is asked for; see `SplitPipeline.stages`. The first has the copy of the pixels in it."""
        arrays = device_engine(self._graphs.engine("pre")).arrays
        steps = DeviceSteps(self._graphs, arrays)
        for name, tensors in split_steps(steps, self._prune, arrays.to_device(pixels), counts):
            arrays.synchronise()
            yield Stage(name, _OnHost(arrays, tensors))


class _OnHost(Mapping[str, Array]):
    """Arrays on a device that are copied to the host when they are looked at."""

    def __init__(self, arrays: ArrayLibrary, tensors: Mapping[str, DeviceArray]) -> None:
        self._arrays = arrays
        self._tensors = tensors

    def __getitem__(self, name: str) -> Array:
        return self._arrays.to_host(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _fused(steps: Steps, prune: PruneSpec, pixels: DeviceArray, counts: tuple[int, ...]) -> DeviceArray:  # noqa: ARG001 - one signature
    return steps.run("fused", {"pixels": pixels, "k": np.array(counts, np.int64)})["embedding"]


def _full(steps: Steps, prune: PruneSpec, pixels: DeviceArray, counts: tuple[int, ...]) -> DeviceArray:  # noqa: ARG001
    return steps.run("full", {"pixels": pixels})["embedding"]


def _split(steps: Steps, prune: PruneSpec, pixels: DeviceArray, counts: tuple[int, ...]) -> DeviceArray:
    tensors: Mapping[str, DeviceArray] = {}
    for _, tensors in split_steps(steps, prune, pixels, counts):  # noqa: B007 - only the last one counts
        pass
    return tensors["embedding"]


_Way = Callable[[Steps, PruneSpec, DeviceArray, tuple[int, ...]], DeviceArray]
# Mode -> the role that takes the pixels, and the work.
_WAYS: Mapping[str, tuple[str, _Way]] = MappingProxyType({"fused": ("fused", _fused), "split": ("pre", _split), "full": ("full", _full)})
