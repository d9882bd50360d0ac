"""ONNX Runtime's CUDA provider: float32 and float16 graphs on an NVIDIA GPU, nothing to build."""

from collections.abc import Sequence
from pathlib import Path

from prtool.engines.base import EngineInfo, EngineOptions
from prtool.engines.ort.gpu import CUDA, GpuSession, OrtGpuEngine, cuda_settings, open_on, probe_gpu
from prtool.manifest import TensorSpec

_NAME = "ort-cuda"


def probe() -> EngineInfo:
    """What would run; see `probe_gpu`."""
    return probe_gpu(_NAME, CUDA)


def open_graph(model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions) -> OrtGpuEngine:
    """Loads an ONNX file; see `open_on`."""
    return open_on(model_path, inputs, options, lambda stream: GpuSession(_NAME, [(CUDA, cuda_settings(options, stream))]))
