"""TensorRT on an NVIDIA GPU (10.12 and later, 11): plans built for the installed GPU, from and to device memory.

Execution needs a GPU and was not run where this was written; parsing, profiles, the cache and the order of calls were.
"""

try:
    import tensorrt  # pyright: ignore[reportMissingImports] - its own registry has it
except OSError as cause:  # its shared libraries cannot be loaded
    raise ImportError(f"tensorrt is installed, but not usable: {cause}") from cause

from functools import partial

from prtool.engines.trt import engine
from prtool.engines.trt.build import Messages, TrtLibrary

LIBRARY = TrtLibrary("trt", "TensorRT", tensorrt, Messages(tensorrt), times_kernels=True, lacks={})
probe = partial(engine.probe, LIBRARY)
build_graph = partial(engine.build_graph, LIBRARY)
open_graph = partial(engine.open_graph, LIBRARY)
build_target = engine.build_target
