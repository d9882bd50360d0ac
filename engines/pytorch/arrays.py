"""Arrays of PyTorch on a CPU or a CUDA device, the selection between two graphs there, and CUDA graphs."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from prtool.engines.base import Array, DeviceArray, reason
from prtool.errors import EngineError, KeepError, ShapeError

# Lazy work of the libraries (handles, workspaces, autotuning) must be over before anything is recorded.
_WARM_UPS = 3


class TorchArrays:
    """Torch tensors on one device, and the selection between two graphs there; the counterpart of `prtool.runtime.select`.

    As it stands for the CPU; safe from many threads. `torch_arrays` makes the one of a device.

    Attributes:
        records: whether `capture` records work, so that a replay costs one launch.
        checks_values: whether NaN in scores and indices out of range are looked for.
    """

    records = False
    checks_values = True

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def device(self) -> str:
        """ "cpu" or "cuda:0"."""
        return str(self._device)

    def to_device(self, array: object) -> DeviceArray:
        """A contiguous tensor on the device, from numpy, torch, or anything with DLPack or the CUDA array interface; not copied where it is there.

        Raises:
            ShapeError: the object is no array, or of a dtype that torch has not.
            EngineError: the device has too little memory.
        """
        try:
            return self._tensor(array).detach().to(self._device).contiguous()
        except torch.OutOfMemoryError as cause:
            shape = tuple(getattr(array, "shape", ()))
            raise EngineError(f"an array {shape} needs more memory than {self.device} has free; give a smaller batch") from cause
        except (TypeError, ValueError, BufferError, RuntimeError) as cause:
            kind = f"{type(array).__name__} of {getattr(array, 'dtype', 'no dtype')}"
            raise ShapeError(
                f"a {kind} cannot become a torch tensor on {self.device}: {reason(cause, 1)}; give numpy, torch, DLPack or CUDA arrays"
            ) from cause

    def to_host(self, array: DeviceArray) -> Array:
        """A numpy array; waits for the work that gives it. Half-precision floats come as float32."""
        tensor: Tensor = array
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        with self._mapped():
            found: Array = tensor.cpu().numpy()
        return found

    def select(self, scores: DeviceArray, k: int) -> DeviceArray:
        """(batch, patches) -> (batch, k) int64 by falling score, the lower index first among equals.

        Raises:
            ShapeError: scores are not two-dimensional, not floating, or hold NaN.
            KeepError: k is out of range.
        """
        if scores.dim() != 2 or not scores.is_floating_point():
            raise ShapeError(f"scores have shape {tuple(scores.shape)} and dtype {scores.dtype}, but selection takes (batch, patches) of floats")
        patches = scores.shape[1]
        if not 1 <= k <= patches:
            raise KeepError(f"k = {k}, but there are {patches} patches to choose from; give 1 to {patches}")
        if self.checks_values and bool(scores.isnan().any()):
            raise ShapeError(
                "scores hold NaN, and NaN has no rank; look for NaN or infinity in the pixels, or for overflow in a half-precision graph"
            )
        # -0.0 + 0.0 is 0.0, so the two zeros are equal to every sort; torch.topk promises no order among equals.
        return torch.sort(scores + 0.0, dim=1, descending=True, stable=True).indices[:, :k].contiguous()

    def gather(self, tokens: DeviceArray, indices: DeviceArray, prefix_tokens: int, learnable_tokens: int) -> DeviceArray:
        """(batch, prefix + patches + learnable, D) -> (batch, prefix + k + learnable, D): the sequence with only the selected patches.

        Raises:
            ShapeError: the shapes do not fit together, or an index names no patch.
        """
        if tokens.dim() != 3 or indices.dim() != 2 or len(indices) != len(tokens):
            raise ShapeError(
                f"tokens {tuple(tokens.shape)} and indices {tuple(indices.shape)} do not fit; they must be (batch, tokens, width) and (batch, k)"
            )
        batch, length, width = tokens.shape
        patches = length - prefix_tokens - learnable_tokens
        if self.checks_values and indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < patches:
            raise ShapeError(f"indices run from {int(indices.min())} to {int(indices.max())}, but there are the patches 0 to {patches - 1}")
        places = torch.arange(length, device=tokens.device).expand(batch, length)
        parts = (places[:, :prefix_tokens], indices + prefix_tokens, places[:, length - learnable_tokens :])
        rows = torch.cat(parts, dim=1) + torch.arange(batch, device=tokens.device)[:, None] * length
        # Whole rows of one flat array: the sequence is written once, and no index is read for each channel.
        return tokens.reshape(batch * length, width).index_select(0, rows.flatten()).reshape(batch, -1, width)

    def copy(self, array: DeviceArray) -> DeviceArray:
        """A new, contiguous tensor of the same content."""
        copied: Tensor = array.clone(memory_format=torch.contiguous_format)
        return copied

    def synchronise(self) -> None:
        """Waits until the device has done everything that was asked of it; a CPU has when a call returns."""

    def fence(self) -> Callable[[], None]:
        """Marks the end of the work so far on the current stream; calling the result makes the caller's stream wait for it."""
        return self.synchronise

    def capture(self, step: Callable[[], DeviceArray]) -> Callable[[], DeviceArray]:
        """Records the work of `step`; calling the result does it again, and gives an array that the next call may overwrite."""
        return step

    def _tensor(self, array: object) -> Tensor:
        if isinstance(array, Tensor):
            return array
        if isinstance(array, np.ndarray):
            # PyTorch warns of memory that must not be written to, though nothing here writes to it.
            return torch.from_numpy(array if array.flags.writeable else array.copy())
        if hasattr(array, "__dlpack__"):
            return cast(Tensor, cast(Any, torch).from_dlpack(array))
        if hasattr(array, "__cuda_array_interface__"):
            return torch.as_tensor(array, device=self._device)
        raise TypeError("it has neither DLPack nor the CUDA array interface")

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        """Work on a device fails where it is waited for."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as cause:
            raise EngineError(f"the work on {self.device} failed: {reason(cause, 1)}") from cause


class CudaTorchArrays(TorchArrays):
    """Tensors on a CUDA device; all work goes to the calling thread's current stream there.

    What would need a value from the device is not checked, because the answer would have to be waited for: NaN in scores
    (it shows as an embedding that is not finite) and indices out of range (`select` gives none).
    """

    checks_values = False

    def __init__(self, device: torch.device, records: bool = True) -> None:
        super().__init__(device)
        self.records = records

    @property
    def stream(self) -> int:
        """The handle of the calling thread's current stream; 0 is the default stream."""
        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A contiguous tensor whose content is not set, for an engine to write to; RuntimeError where the device has too little memory."""
        made: Tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=self._device)
        return made

    def fence(self) -> Callable[[], None]:
        """Marks the end of the work so far; see `TorchArrays.fence`."""
        event = cast(Any, torch.cuda.Event)()
        event.record(torch.cuda.current_stream(self._device))
        return lambda: torch.cuda.current_stream(self._device).wait_event(event)

    def capture(self, step: Callable[[], DeviceArray]) -> Callable[[], DeviceArray]:
        """A CUDA graph of `step`, in memory of its own; EngineError where memory runs out, or `step` waits for the device or copies from the host."""
        if not self.records:
            return super().capture(step)
        try:
            with torch.cuda.device(self._device), torch.no_grad():
                return self._record(step)
        except RuntimeError as cause:
            raise EngineError(f"the work on {self.device} cannot be recorded as a CUDA graph: {reason(cause, 1)}") from cause

    def synchronise(self) -> None:
        """Waits until the device is idle; see `TorchArrays.synchronise`."""
        with self._mapped():
            torch.cuda.synchronize(self._device)

    def _record(self, step: Callable[[], DeviceArray]) -> Callable[[], DeviceArray]:
        side = cast(Any, torch.cuda.Stream)()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with their own work while this one records.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            result = step()

        def replay() -> DeviceArray:
            try:
                graph.replay()
            except RuntimeError as cause:
                raise EngineError(f"a CUDA graph failed: {reason(cause, 1)}") from cause
            return result

        return replay


@functools.cache
def torch_arrays(device: str) -> TorchArrays:
    """The arrays of a device by its torch name ("cpu", "cuda:0"); the same object for all engines of that device."""
    chosen = torch.device(device)
    return cuda_torch_arrays(chosen.index or 0, True) if chosen.type == "cuda" else TorchArrays(chosen)


@functools.cache
def cuda_torch_arrays(device: int, records: bool) -> CudaTorchArrays:
    """The arrays of the CUDA device of that number; those that do not record run work again instead."""
    return CudaTorchArrays(torch.device("cuda", device), records)
