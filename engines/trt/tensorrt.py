"""TensorRT on an NVIDIA GPU (10.12 and later, 11): plans built for the installed GPU, from and to device memory.

Execution needs a GPU and was not run where this was written; parsing, profiles, the cache and the order of calls were.
"""

try:
    import tensorrt  # pyright: ignore[reportMissingImports] - its own registry has it
except OSError as cause:  # its shared libraries cannot be loaded
    raise ImportError(f"tensorrt is installed, but not usable: {cause}") from cause

from prtool.engines.trt.build import Messages, TrtLibrary
from prtool.engines.trt.engine import TrtModule

LIBRARY = TrtLibrary("trt", "TensorRT", tensorrt, Messages(tensorrt), times_kernels=True, lacks={})
_MODULE = TrtModule(LIBRARY)
probe, open_graph, build_graph, build_target = _MODULE.probe, _MODULE.open_graph, _MODULE.build_graph, _MODULE.build_target
