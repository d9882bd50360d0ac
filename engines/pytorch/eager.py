"""PyTorch: a bundle's graphs in eager mode with fused attention, on a CUDA device where PyTorch finds one, else on the CPU."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prtool.cpus import granted_cpus
from prtool.engines.base import Array, DeviceArray, EngineInfo, EngineOptions, GraphOptions, check_inputs, check_signature, opened, reason
from prtool.engines.cuda import described
from prtool.engines.pytorch.arrays import TorchArrays, torch_arrays
from prtool.engines.pytorch.graph import TorchGraph, load_graph
from prtool.errors import EngineError, EngineUnavailable
from prtool.manifest import TensorSpec

_Call = Callable[..., tuple[Tensor, ...]]
Prepare = Callable[[TorchGraph, torch.device], _Call]
"""Makes what is called from a graph's module."""

_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, MemoryError)


class TorchEngine:
    """One ONNX graph as a PyTorch module; a `DeviceEngine`.

    `run` and `run_device` may be called from many threads at once; outputs belong to the caller. Nothing of it takes
    part in gradients. Each graph has its own copy of its weights on the device.
    """

    def __init__(self, model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions, name: str, prepare: Prepare) -> None:
        """Loads `model_path`; see `EngineModule.open_graph`.

        Args:
            model_path, inputs: as there.
            options: `device` is used where there is CUDA, `threads` where there is none: PyTorch has one number of
                threads for everything, so it is set for the time of a call and put back afterwards.
            name: what `info` calls the engine.
            prepare: makes the callable of the module.
        """
        self._name = name
        self._file = model_path
        self._specs = tuple(inputs)
        self._device = chosen_device(options)
        # PyTorch itself knows of taskset, but not of a container's quota.
        self._threads = options.threads or (granted if (granted := granted_cpus()) < torch.get_num_threads() else 0)
        self._exact = options.precision == "fp32"
        graph = load_graph(model_path, self._device)
        check_signature(model_path, graph.inputs, inputs)
        self._shape_inputs, self._names = graph.shape_inputs, (graph.inputs, graph.outputs)
        self._call: _Call | None = prepare(graph, self._device)
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in graph.module.buffers()}
        self._arrays = torch_arrays(str(self._device))

    @property
    def info(self) -> EngineInfo:
        """PyTorch's version, and the GPU or the number of CPU threads."""
        return EngineInfo(self._name, torch.__version__, _in_words(self._device, self._threads))

    @property
    def arrays(self) -> TorchArrays:
        """Tensors on the engine's device; see `DeviceEngine.arrays`."""
        return self._arrays

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph once on numpy arrays; see `Engine.run`."""
        call = opened(self._call, self._file.name)
        check_inputs(self._specs, inputs, self._file.name)
        try:
            placed = {name: array if name in self._shape_inputs else self._arrays.to_device(array) for name, array in inputs.items()}
            return {name: self._arrays.to_host(tensor) for name, tensor in self._run(call, placed).items()}
        except torch.OutOfMemoryError as cause:
            raise self._out_of_memory(inputs, cause) from cause

    def run_device(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Runs the graph once on tensors; see `DeviceEngine.run_device`."""
        call = opened(self._call, self._file.name)
        check_inputs(self._specs, {name: described(name, array) for name, array in inputs.items()}, self._file.name)
        try:
            return self._run(call, inputs)
        except torch.OutOfMemoryError as cause:
            raise self._out_of_memory(inputs, cause) from cause

    def close(self) -> None:
        """Frees the graph once calls that still run in other threads are done; a second call does nothing."""
        self._call = None

    def _run(self, call: _Call, inputs: Mapping[str, DeviceArray]) -> dict[str, Tensor]:
        names, outputs = self._names
        arguments = [tuple(int(item) for item in inputs[name]) if name in self._shape_inputs else inputs[name] for name in names]
        try:
            with _on(self._device, self._threads), torch.no_grad():
                if self._exact:
                    _check_float32(self._device)
                results = call(*arguments)
                return dict(zip(outputs, self._owned(results, arguments), strict=True))
        except torch.OutOfMemoryError:
            raise
        except _FAILURES as cause:
            sizes = ", ".join(f"{name} {tuple(np.shape(array))}" for name, array in inputs.items())
            raise EngineError(f"PyTorch failed in {self._file} on {sizes}: {reason(cause, 1)}") from cause

    def _owned(self, results: Sequence[Tensor], arguments: Sequence[object]) -> Iterator[Tensor]:
        """The outputs, contiguous; a copy of one that shares memory with an input, a weight or another output."""
        taken = self._weights | {item.untyped_storage().data_ptr() for item in arguments if isinstance(item, Tensor)}
        for result in results:
            whole = result.contiguous()
            place = whole.untyped_storage().data_ptr()
            yield whole.clone() if place in taken else whole
            taken.add(place)

    def _out_of_memory(self, inputs: Mapping[str, DeviceArray], cause: Exception) -> EngineError:
        batch = next((len(array) for name, array in inputs.items() if name not in self._shape_inputs), 1)
        message = f"{self._file.name} at batch {batch} needs more memory than {_in_words(self._device, self._threads)} has free: {reason(cause, 1)}"
        fitting = self._fitting_batch(inputs, batch)
        advice = f"batch {fitting} fits" if fitting else "not even one item fits; free the device's memory, or use another device"
        return EngineError(f"{message}; {advice}")

    def _fitting_batch(self, inputs: Mapping[str, DeviceArray], batch: int) -> int:
        """The largest of batch / 2, / 4, ... that runs, found by trying; 0 when none does."""
        call = opened(self._call, self._file.name)
        while batch > 1:
            batch //= 2
            torch.cuda.empty_cache()
            part = {name: array if name in self._shape_inputs else self._arrays.to_device(array[:batch]) for name, array in inputs.items()}
            with contextlib.suppress(torch.OutOfMemoryError):
                self._run(call, part)
                return batch
        return 0


def chosen_device(options: EngineOptions) -> torch.device:
    """CUDA device number `options.device`; the CPU where PyTorch finds no CUDA device at all, and EngineUnavailable where not that one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.device < count:
        return torch.device("cuda", options.device)
    if count == 0 and options.device == 0:
        return torch.device("cpu")
    found = f"the devices 0 to {count - 1}" if count else "no CUDA device"
    raise EngineUnavailable(f"device = {options.device}, but PyTorch finds {found}; give another device, or check the driver with nvidia-smi")


def probe() -> EngineInfo:
    """What would run: this PyTorch on the first CUDA device, or on the CPU where it finds none."""
    return EngineInfo("torch", torch.__version__, _in_words(chosen_device(EngineOptions()), 0))


def open_graph(model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions) -> TorchEngine:
    """Loads an ONNX file; see `TorchEngine`."""
    return TorchEngine(model_path, inputs, options, "torch", lambda graph, device: graph.module)  # noqa: ARG005


class _Threads:
    """The process's number of threads for the time of some calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._outside = 0

    @contextlib.contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Each calling thread has its own number while it computes; the last one out puts the process's back."""
        with self._lock:
            if self._calls == 0:
                self._outside = torch.get_num_threads()
            self._calls += 1
            torch.set_num_threads(count)
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                torch.set_num_threads(self._outside)


_threads = _Threads()


def _on(device: torch.device, threads: int) -> contextlib.AbstractContextManager[object]:
    if device.type == "cuda":
        return torch.cuda.device(device)
    return _threads.of(threads) if threads else contextlib.nullcontext()


def _check_float32(device: torch.device) -> None:
    """Rejects a process that lets float32 products run in TF32, whose 10 bits are not what a fp32 graph says."""
    if device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        raise EngineError(
            f"torch.get_float32_matmul_precision() is {torch.get_float32_matmul_precision()!r}, so float32 products would be TF32; "
            "call torch.set_float32_matmul_precision('highest'), or ask for precision fp16 or bf16"
        )


def _in_words(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, cuda:{device.index}"
    count = threads or torch.get_num_threads()
    return f"CPU, {count} thread{'s' if count > 1 else ''}"
