"""ONNX Runtime's CUDA provider: float32 and float16 graphs on an NVIDIA GPU, nothing to build."""

import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from prtool.engines.base import Array, DeviceArray, EngineInfo, EngineOptions, check_inputs, opened
from prtool.engines.cuda import address, cuda_arrays, described
from prtool.engines.nvidia import gpu
from prtool.engines.ort.cpu import FAILURES, OrtEngine, open_session, session_settings
from prtool.errors import EngineUnavailable
from prtool.extras import INSTALL_GPU
from prtool.manifest import TensorSpec

if TYPE_CHECKING:
    from prtool.engines.pytorch.arrays import CudaTorchArrays

_NAME = "ort-cuda"
_PROVIDER = "CUDAExecutionProvider"


class OrtCudaEngine(OrtEngine):
    """One ONNX graph in an ONNX Runtime session on a GPU, from host arrays to host arrays.

    `run` may be called from many threads at once; their work is done one after the other. Outputs belong
    to the caller. Operators that the provider lacks run on the CPU, as ONNX Runtime divides the graph: small
    ones that make shapes.
    """

    def __init__(self, model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions, stream: int = 0) -> None:
        """As `OrtEngine`; `options.device` is used too. `stream` is the handle of the stream to work on; 0 lets the provider make its own."""
        _require_provider()
        gpu(options.device)
        self._device = options.device
        self._stream = stream
        self._turn = threading.Lock()
        super().__init__(model_path, inputs, options)

    @property
    def info(self) -> EngineInfo:
        """ONNX Runtime's version, the GPU's name and the provider."""
        return EngineInfo(_NAME, onnxruntime.__version__, f"{gpu(self._device).name}, {_PROVIDER}")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph once; see `Engine.run`."""
        with self._turn:
            return super().run(inputs)

    def _open(self, options: EngineOptions) -> Any:  # noqa: ANN401 - onnxruntime has no types
        # Where a provider cannot start, ONNX Runtime warns and takes the next one; the check below rejects that.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = open_session(
                self._file, session_settings(self._threads, options.spinning), [(_PROVIDER, _provider_options(self._device, self._stream))]
            )
        session.disable_fallback()
        running = session.get_providers()
        if not running or running[0] != _PROVIDER:
            raise EngineUnavailable(
                f"engine {_NAME} asked for {_PROVIDER}, but ONNX Runtime {onnxruntime.__version__} started {', '.join(running)}; "
                "install the CUDA and cuDNN libraries that this version was built for, and check the driver with nvidia-smi"
            )
        return session


class OrtDeviceEngine(OrtCudaEngine):
    """The same, from device arrays to device arrays as well: nothing passes through the host."""

    def __init__(self, model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions, arrays: "CudaTorchArrays") -> None:
        """As `OrtCudaEngine`, on the stream of `arrays` that is current now; they are on the same device and do not record."""
        self._arrays = arrays
        super().__init__(model_path, inputs, options, arrays.stream)

    @property
    def arrays(self) -> "CudaTorchArrays":
        """Arrays on the session's device."""
        return self._arrays

    def run_device(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Runs the graph once on device arrays; see `DeviceEngine.run_device`.

        On another stream than the one that was current when the graph was loaded (or where that was the
        default stream, which ONNX Runtime does not take), it waits for the work before it and for its own.
        """
        session = opened(self._session, self._file.name)
        host = {name: described(name, array) for name, array in inputs.items()}
        check_inputs(self._inputs, host, self._file.name)
        in_order = self._stream != 0 and self._arrays.stream == self._stream
        try:
            with self._turn:
                binding = session.io_binding()
                for name, array in inputs.items():
                    if isinstance(array, np.ndarray):
                        binding.bind_cpu_input(name, np.ascontiguousarray(array))
                    else:
                        binding.bind_input(name, "cuda", self._device, host[name].dtype.type, list(host[name].shape), address(array))
                for name in self._outputs:
                    binding.bind_output(name, "cuda", self._device)
                if not in_order:
                    self._arrays.synchronise()
                options = onnxruntime.RunOptions()
                options.add_run_config_entry("disable_synchronize_execution_providers", str(int(in_order)))
                session.run_with_iobinding(binding, options)
                results = binding.get_outputs()
        except FAILURES as cause:
            raise self._failed(host, cause) from cause
        # Through DLPack: the array holds ONNX Runtime's memory and gives it back when it goes.
        return {name: self._arrays.to_device(value) for name, value in zip(self._outputs, results, strict=True)}


def probe() -> EngineInfo:
    """What would run on the first GPU; raises EngineUnavailable where the provider, the driver or the device is missing."""
    _require_provider()
    return EngineInfo(_NAME, onnxruntime.__version__, f"{gpu(0).name}, {_PROVIDER}")


def open_graph(model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions) -> OrtCudaEngine:
    """Loads an ONNX file; see `OrtCudaEngine`. Where PyTorch finds the GPU, arrays stay there between graphs."""
    try:
        # ONNX Runtime allocates while it runs, which cannot be recorded.
        arrays = cuda_arrays(options.device, records=False)
    except EngineUnavailable:
        return OrtCudaEngine(model_path, inputs, options)
    return OrtDeviceEngine(model_path, inputs, options, arrays)


def _require_provider() -> None:
    found = onnxruntime.get_available_providers()
    if _PROVIDER not in found:
        raise EngineUnavailable(
            f"engine {_NAME} needs {_PROVIDER}, but the installed ONNX Runtime {onnxruntime.__version__} has only {', '.join(found)}; "
            f"{INSTALL_GPU} (both packages fill the same folder)"
        )


def _provider_options(device: int, stream: int) -> dict[str, str]:
    options = {
        "device_id": str(device),
        # float32 as asked for: TF32 rounds the factors of every product to 10 bits, and is on by default.
        "use_tf32": "0",
        # Otherwise every new batch size tries all algorithms of the one convolution.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return options | ({"user_compute_stream": str(stream)} if stream else {})
