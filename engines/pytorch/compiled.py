"""torch.compile: the PyTorch engine with kernels made for the graph; the first call of a new shape takes seconds to minutes."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from prtool.engines.base import EngineInfo, EngineOptions, GraphOptions
from prtool.engines.pytorch.eager import TorchEngine, chosen_device
from prtool.engines.pytorch.eager import probe as probe_torch
from prtool.engines.pytorch.graph import TorchGraph
from prtool.errors import EngineUnavailable
from prtool.manifest import TensorSpec

NAME = "torch-compile"
# Kernels are also timed on a GPU; CUDA graphs are the pipeline's business, which holds several compiled graphs in one.
_MODES = {"cuda": "max-autotune-no-cudagraphs", "cpu": "default"}


def probe() -> EngineInfo:
    """What would run: as engine torch; EngineUnavailable where there is no CUDA device, and for a CPU no C++ compiler."""
    _check_compiler(chosen_device(EngineOptions()))
    return dataclasses.replace(probe_torch(), name=NAME)


def open_graph(model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions) -> TorchEngine:
    """Loads an ONNX file; nothing is compiled before the first call. See `TorchEngine`.

    Batch and tokens are symbolic: at most a handful of programs serves every size (1 has its own).
    For a CPU it raises EngineUnavailable where there is no C++ compiler.
    """
    _check_compiler(chosen_device(options))
    axes = {spec.name: [place for place, axis in enumerate(spec.shape) if isinstance(axis, str)] for spec in inputs}

    def prepare(graph: TorchGraph, device: torch.device) -> Callable[..., tuple[Tensor, ...]]:
        compiled = cast(Callable[..., tuple[Tensor, ...]], torch.compile(graph.module, fullgraph=True, mode=_MODES[device.type]))

        def call(*arguments: Tensor | tuple[int, ...]) -> tuple[Tensor, ...]:
            return compiled(*(_marked(item, axes[name]) for name, item in zip(graph.inputs, arguments, strict=True)))

        return call

    return TorchEngine(model_path, inputs, options, NAME, prepare)


def _check_compiler(device: torch.device) -> None:
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise EngineUnavailable(f"torch.compile on a CPU needs a C++ compiler, and there is no {compiler}; install one (apt install g++), or set CXX")


def _marked(argument: Tensor | tuple[int, ...], axes: Sequence[int]) -> Tensor | tuple[int, ...]:
    if not isinstance(argument, Tensor):
        return argument
    # Marks stick to a tensor, so they go on a view and not on what belongs to the caller.
    view = argument.view(argument.shape)
    for axis in axes:
        torch._dynamo.maybe_mark_dynamic(view, axis)
    return view
