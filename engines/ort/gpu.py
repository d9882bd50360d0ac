"""ONNX Runtime on an NVIDIA GPU: what its CUDA and TensorRT providers have in common."""

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import onnxruntime

from prtool.engines.base import Array, ArrayLibrary, DeviceArray, EngineInfo, EngineOptions, Recording, check_inputs
from prtool.engines.cuda import cuda_arrays
from prtool.engines.device_memory import address, outline
from prtool.engines.nvidia import gpu
from prtool.engines.ort.cpu import FAILURES, OrtEngine, Provider, open_session, session_settings
from prtool.errors import EngineUnavailable
from prtool.extras import INSTALL_GPU
from prtool.manifest import TensorSpec

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


class StreamArrays(ArrayLibrary, Protocol):
    """Arrays on one GPU, and the stream that work on them is put on."""

    @property
    def stream(self) -> int:
        """The handle of the calling thread's current CUDA stream; 0 is the default stream."""
        ...


@dataclass(frozen=True, slots=True)
class GpuSession:
    """How one session is opened.

    Attributes:
        engine: name in the registry.
        providers: in order of preference; the first one is what was asked for.
        building: held while the session is opened, where that builds files that others read.
    """

    engine: str
    providers: Sequence[Provider]
    building: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def asked(self) -> str:
        """The provider that must run."""
        first = self.providers[0]
        return first if isinstance(first, str) else first[0]


class OrtGpuEngine(OrtEngine):
    """One ONNX graph in an ONNX Runtime session on a GPU, from host arrays to host arrays.

    `run` may be called from many threads at once; their work is done one after the other. Outputs belong
    to the caller. Operators that the provider lacks run on the next provider, as ONNX Runtime does it: small
    ones that make shapes run on the CPU.
    """

    def __init__(self, model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions, session: GpuSession) -> None:
        """Loads `model_path`; see `OrtEngine`.

        Raises:
            EngineUnavailable: the installed ONNX Runtime has no such provider, or it finds no driver, library or device.
            EngineError: as `OrtEngine`.
        """
        require(session.engine, session.asked)
        gpu(options.device)
        self._plan = session
        self._device = options.device
        self._turn = threading.Lock()
        super().__init__(model_path, inputs, options)

    @property
    def info(self) -> EngineInfo:
        """ONNX Runtime's version, the GPU's name and the provider."""
        return EngineInfo(self._plan.engine, onnxruntime.__version__, f"{gpu(self._device).name}, {self._plan.asked}")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph once; see `Engine.run`."""
        with self._turn:
            return super().run(inputs)

    def _open(self, options: EngineOptions) -> Any:  # noqa: ANN401 - onnxruntime has no types
        # Where a provider cannot start, ONNX Runtime warns and takes the next one; the check below refuses that.
        with self._plan.building(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = open_session(self._file, session_settings(self._threads, options.spinning), self._plan.providers)
        session.disable_fallback()
        running = session.get_providers()
        if not running or running[0] != self._plan.asked:
            raise EngineUnavailable(
                f"engine {self._plan.engine} asked for {self._plan.asked}, but ONNX Runtime {onnxruntime.__version__} started {', '.join(running)}; "
                "install the CUDA, cuDNN (and TensorRT) libraries that this version was built for, and check the driver with nvidia-smi"
            )
        return session


class OrtDeviceEngine(OrtGpuEngine):
    """The same, from device arrays to device arrays as well: nothing passes through the host."""

    def __init__(self, model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions, session: GpuSession, arrays: StreamArrays) -> None:
        """Loads `model_path`; see `OrtGpuEngine`.

        Args:
            arrays: arrays on the same device; the session works on the stream that is current now.
        """
        self._library = arrays
        self._arrays = _Uncaptured(arrays)
        self._stream = arrays.stream
        super().__init__(model_path, inputs, options, session)

    @property
    def arrays(self) -> ArrayLibrary:
        """Arrays on the session's device. ONNX Runtime allocates while it runs, so `capture` records nothing: `replay` runs again."""
        return self._arrays

    def run_device(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Runs the graph once on device arrays; see `DeviceEngine.run_device`.

        On another stream than the one that was current when the graph was loaded (or where that was the
        default stream, which ONNX Runtime does not take), it waits for the work before it and for its own.

        Raises:
            ShapeError: a name, dtype or shape differs from the declared one.
            EngineError: the engine is closed, or ONNX Runtime failed; the message has its reason.
        """
        session = self._opened()
        described = {name: outline(name, array) for name, array in inputs.items()}
        check_inputs(self._inputs, described, self._file.name)
        in_order = self._stream != 0 and self._library.stream == self._stream
        try:
            with self._turn:
                binding = session.io_binding()
                for name, array in inputs.items():
                    self._bind(binding, name, array, described[name])
                for name in self._outputs:
                    binding.bind_output(name, "cuda", self._device)
                if not in_order:
                    self._library.synchronise()
                session.run_with_iobinding(binding, _run_options(waits=not in_order))
                results = binding.get_outputs()
        except FAILURES as cause:
            raise self._failed(described, cause) from cause
        # Through DLPack: the array holds ONNX Runtime's memory and gives it back when it goes.
        return {name: self._library.to_device(value) for name, value in zip(self._outputs, results, strict=True)}

    def _bind(self, binding: Any, name: str, array: DeviceArray, described: Array) -> None:  # noqa: ANN401 - onnxruntime has no types
        if isinstance(array, np.ndarray):
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        else:
            binding.bind_input(name, "cuda", self._device, described.dtype.type, list(described.shape), address(array))


class _Uncaptured:
    """An array library without recording; all else is the library's."""

    def __init__(self, arrays: StreamArrays) -> None:
        self.device = arrays.device
        self.to_device, self.to_host = arrays.to_device, arrays.to_host
        self.select, self.gather, self.synchronise = arrays.select, arrays.gather, arrays.synchronise

    def capture(self, step: Callable[[], DeviceArray]) -> Recording:
        """Records nothing."""
        return _Again(step)


@dataclass(frozen=True, slots=True)
class _Again:
    step: Callable[[], DeviceArray]

    def replay(self) -> DeviceArray:
        return self.step()


def require(engine: str, provider: str) -> None:
    """Checks that the installed ONNX Runtime was built with a provider.

    Raises:
        EngineUnavailable: it was not; the message has what it was built with.
    """
    found = onnxruntime.get_available_providers()
    if provider not in found:
        raise EngineUnavailable(
            f"engine {engine} needs {provider}, but the installed ONNX Runtime {onnxruntime.__version__} has only {', '.join(found)}; "
            f"{INSTALL_GPU} (both packages fill the same folder)"
        )


def cuda_settings(options: EngineOptions, stream: int) -> dict[str, str]:
    """Options of the CUDA provider.

    Args:
        options: the device's number.
        stream: handle of the stream to work on; 0 lets the provider make its own.
    """
    settings = {
        "device_id": str(options.device),
        # float32 as asked for: TF32 rounds the factors of every product to 10 bits, and is on by default.
        "use_tf32": "0",
        # Otherwise every new batch size tries all algorithms of the one convolution.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return settings | ({"user_compute_stream": str(stream)} if stream else {})


def open_on(model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions, plan: Callable[[int], GpuSession]) -> OrtGpuEngine:
    """Opens a graph on the GPU; its arrays stay there where a library for arrays is installed.

    Args:
        model_path: the ONNX file.
        inputs: the graph's declared inputs.
        options: `device`, `threads` (of the operators on the CPU) and what the plan reads.
        plan: the session for the handle of a stream, 0 for one of its own.
    """
    arrays = device_arrays(options.device)
    if arrays is None:
        return OrtGpuEngine(model_path, inputs, options, plan(0))
    return OrtDeviceEngine(model_path, inputs, options, plan(arrays.stream), arrays)


def _run_options(waits: bool) -> Any:  # noqa: ANN401 - onnxruntime has no types
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", str(int(not waits)))
    return options


def device_arrays(device: int) -> StreamArrays | None:
    """Arrays on the GPU of that number; None where no library for them (PyTorch, CuPy) is installed."""
    try:
        return cast(StreamArrays, cuda_arrays(device))
    except EngineUnavailable:
        return None


def probe_gpu(engine: str, provider: str) -> EngineInfo:
    """What would run on the first GPU.

    Raises:
        EngineUnavailable: the provider is not in the installed ONNX Runtime, or there is no driver or device.
    """
    require(engine, provider)
    return EngineInfo(engine, onnxruntime.__version__, f"{gpu(0).name}, {provider}")
