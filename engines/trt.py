"""TensorRT on an NVIDIA GPU (10.12 and later, 11): plans built for the installed GPU, from and to device memory.

Execution needs a GPU and was not run where this was written; parsing, profiles, the cache and the order of calls were.
"""

from collections.abc import Sequence
from pathlib import Path

try:
    import tensorrt  # pyright: ignore[reportMissingImports] - its own registry has it
except OSError as cause:  # its shared libraries cannot be loaded
    raise ImportError(f"tensorrt is installed, but not usable: {cause}") from cause

from prtool.engines import trt_engine
from prtool.engines.base import EngineInfo, EngineOptions
from prtool.engines.cache import CachedEngine
from prtool.engines.trt_build import Messages, TrtLibrary
from prtool.engines.trt_engine import TrtGraph
from prtool.engines.trt_run import TrtEngine
from prtool.manifest import TensorSpec

LIBRARY = TrtLibrary("trt", "TensorRT", tensorrt, Messages(tensorrt), times_kernels=True, lacks={})
build_target = trt_engine.build_target


def probe() -> EngineInfo:
    """What would run; see `prtool.engines.trt_engine.probe`."""
    return trt_engine.probe(LIBRARY)


def open_graph(model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions) -> TrtEngine:
    """Builds or takes an engine, and loads it; see `prtool.engines.trt_engine.open_engine`."""
    return trt_engine.open_engine(LIBRARY, TrtGraph(model_path, tuple(inputs), options))


def build_graph(model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions, *, rebuild: bool = False) -> CachedEngine:
    """The engine file of one graph, from the cache or built now; see `prtool.engines.trt_engine.build`."""
    return trt_engine.build(LIBRARY, TrtGraph(model_path, tuple(inputs), options), rebuild=rebuild)
