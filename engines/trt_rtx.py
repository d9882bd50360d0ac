"""TensorRT-RTX on an RTX GPU: plans that can be built without a GPU, and whose kernels are compiled where they run.

Execution needs a GPU and was not run where this was written; building, the cache and the order of calls were.
"""

from collections.abc import Sequence
from pathlib import Path

try:
    import tensorrt_rtx
except OSError as cause:  # its shared libraries cannot be loaded
    raise ImportError(f"tensorrt_rtx is installed, but not usable: {cause}") from cause

from prtool.engines import trt_engine
from prtool.engines.base import EngineInfo, EngineOptions
from prtool.engines.cache import CachedEngine
from prtool.engines.trt_build import Messages, TrtLibrary
from prtool.engines.trt_engine import TrtGraph
from prtool.engines.trt_run import TrtEngine
from prtool.manifest import TensorSpec

LIBRARY = TrtLibrary(
    "trt-rtx",
    "TensorRT-RTX",
    tensorrt_rtx,
    Messages(tensorrt_rtx),
    # Kernels are chosen when the engine runs first, so the builder has nothing to remember.
    times_kernels=False,
    lacks={
        "version_compatible": "it has no lean runtime to put into the plan",
        "hardware_compatible": "its plans are compiled for the GPU when they run first",
    },
)
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
