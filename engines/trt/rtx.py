"""TensorRT-RTX on an RTX GPU: plans that can be built without a GPU, and whose kernels are compiled where they run.

Execution needs a GPU and was not run where this was written; building, the cache and the order of calls were.
"""

try:
    import tensorrt_rtx
except OSError as cause:  # its shared libraries cannot be loaded
    raise ImportError(f"tensorrt_rtx is installed, but not usable: {cause}") from cause

from prtool.engines.trt.build import Messages, TrtLibrary
from prtool.engines.trt.engine import TrtModule

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
_MODULE = TrtModule(LIBRARY)
probe, open_graph, build_graph, build_target = _MODULE.probe, _MODULE.open_graph, _MODULE.build_graph, _MODULE.build_target
