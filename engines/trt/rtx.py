"""TensorRT-RTX on an RTX GPU: plans that can be built without a GPU, and whose kernels are compiled where they run.

Execution needs a GPU and was not run where this was written; building, the cache and the order of calls were.
"""

try:
    import tensorrt_rtx
except OSError as cause:  # its shared libraries cannot be loaded
    raise ImportError(f"tensorrt_rtx is installed, but not usable: {cause}") from cause

from functools import partial

from prtool.engines.trt import engine
from prtool.engines.trt.build import Messages, TrtLibrary

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
probe = partial(engine.probe, LIBRARY)
build_graph = partial(engine.build_graph, LIBRARY)
open_graph = partial(engine.open_graph, LIBRARY)
build_target = engine.build_target
