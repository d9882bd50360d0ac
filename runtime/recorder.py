"""Work on a device, recorded once per shape and replayed: one CUDA graph holds every graph of a bundle and the selections between."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from prtool.engines.base import DeviceArray
from prtool.engines.forks import track

if TYPE_CHECKING:
    from prtool.engines.pytorch.arrays import TorchArrays

# A recording holds the activations of its largest graph; at batch 256 of ViT-L/14 that is gigabytes.
MAX_RECORDINGS = 8
_Key = tuple[tuple[int, ...], str, tuple[int, ...]]


class Recorder:
    """Runs one kind of work on a device; the second call with the same shapes records it, and later ones replay the recording.

    Safe from many threads and streams: a recording is used by one call at a time, and its memory is not written to before
    the call before has read its result.
    """

    def __init__(self, arrays: "TorchArrays", work: Callable[[DeviceArray, tuple[int, ...]], DeviceArray], most: int = MAX_RECORDINGS) -> None:
        """Keeps at most `most` recordings, the last used, of `work`: pixels and counts to an array that belongs to the caller."""
        # Arrays that cannot record run the work in each call.
        self._arrays = arrays if arrays.records else None
        self._work = work
        self._most = most
        self._slots: OrderedDict[_Key, _Slot] = OrderedDict()
        self._lock = threading.Lock()
        track(self)

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
        if slot is not None:
            return slot.run(pixels)
        # The first call also shows whether the shapes are allowed, and lets engines set themselves up for them.
        result = self._work(pixels, counts)
        with self._lock:
            self._slots.setdefault(key, _Slot(arrays, lambda static: self._work(static, counts)))
            dropped = [self._slots.popitem(last=False)[1] for _ in range(len(self._slots) - self._most)]
        for slot in dropped:
            slot.free()
        return result

    def clear(self) -> None:
        """Frees every recording, once the device has finished with it."""
        with self._lock:
            dropped, self._slots = list(self._slots.values()), OrderedDict()
        for slot in dropped:
            slot.free()


class _Slot:
    """One recording with the memory that it reads; made by the first call that uses it."""

    def __init__(self, arrays: "TorchArrays", work: Callable[[DeviceArray], DeviceArray]) -> None:
        self._arrays = arrays
        self._work = work
        self._recorded: tuple[DeviceArray, Callable[[], DeviceArray]] | None = None
        self._read: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def run(self, pixels: DeviceArray) -> DeviceArray:
        with self._lock:
            if self._read is not None:
                self._read()
            if self._recorded is None:
                kept = self._arrays.copy(pixels)
                self._recorded = kept, self._arrays.capture(lambda: self._work(kept))
            static, replay = self._recorded
            static[...] = pixels
            result = self._arrays.copy(replay())
            self._read = self._arrays.fence()
            return result

    def free(self) -> None:
        with self._lock:
            if self._recorded is not None:
                # Its memory may be given to others as soon as it is dropped, so nothing may still use it.
                self._arrays.synchronise()
                self._recorded = self._read = None
