"""Engine names, and how each is opened; a new engine is one file and one row of `ENGINES`."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

from prtool.engines.base import Engine, EngineInfo, GraphOptions
from prtool.engines.forks import check_engine, track
from prtool.errors import ConfigError, EngineUnavailable
from prtool.extras import INSTALL_GPU, install_hint
from prtool.manifest import TensorSpec
from prtool.records import check_value
from prtool.text_safety import printable

if TYPE_CHECKING:
    from prtool.engines.cache.store import CachedEngine


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """One row of the registry.

    Attributes:
        module: the module that holds the engine, imported on first use; it follows `EngineModule`.
        install: the command that makes the engine's library importable.
        description: one line for people.
        precisions: arithmetic that can be asked for -> precision of the bundle's graphs that it runs.
        builds_ahead: engines are files that `prtool build` makes; its module follows `BuilderModule`.
        has_gpu: it can run on a GPU; else a device other than 0 is an error.
    """

    module: str
    install: str
    description: str
    precisions: Mapping[str, str]
    builds_ahead: bool = False
    has_gpu: bool = True


class EngineModule(Protocol):
    """What the module of an engine offers. Importing it imports the engine's library."""

    def probe(self) -> EngineInfo:
        """What would run on this machine; raises EngineUnavailable where the library finds no device."""
        ...

    def open_graph(self, model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions) -> Engine:
        """Loads an ONNX file, whose external data lie next to it; every call is checked against the declared `inputs`.

        Raises:
            ConfigError: an option is not one of the engine's.
            EngineUnavailable: the library finds no such device, or the device has not the precision.
            EngineError: the file is missing or damaged, the engine rejects it, or its inputs are not the declared ones; the message names the file.
        """
        ...


class BuilderModule(EngineModule, Protocol):
    """What the module of an engine that builds ahead offers as well."""

    def build_graph(self, model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions, *, rebuild: bool = False) -> "CachedEngine":
        """The engine file of one graph, from the cache or built now; without a GPU where the library can.

        Raises:
            ConfigError: an option that the library lacks, or an axis without a range.
            EngineUnavailable: the library builds only with a GPU and finds none.
            EngineError, StorageError: the library rejects the graph; and as `EngineCache.obtain`.
        """
        ...

    def build_target(self, device: int) -> str:
        """The device that a build is for; "no device" and the reason where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One line of `prtool doctor`: `info` of an engine that would run here, or None and the `reason` why it would not."""

    name: str
    description: str
    info: EngineInfo | None
    reason: str


# Each precision runs the graphs of its own name.
_TYPED = MappingProxyType({"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"})
ENGINES: Mapping[str, EngineEntry] = MappingProxyType(
    {
        "ort": EngineEntry(
            "prtool.engines.ort.cpu", "pip install onnxruntime", "ONNX Runtime on the CPU", {"fp32": "fp32", "int8": "int8"}, has_gpu=False
        ),
        # No bf16: the CUDA provider has no bfloat16 convolution before operator set 22, and the graphs are of set 20.
        "ort-cuda": EngineEntry("prtool.engines.ort.cuda", INSTALL_GPU, "ONNX Runtime with CUDA", {"fp32": "fp32", "fp16": "fp16"}),
        "openvino": EngineEntry(
            "prtool.engines.ov.engine",
            install_hint("openvino"),
            "OpenVINO on the CPU; bf16 is its arithmetic on the fp32 graphs",
            {"fp32": "fp32", "bf16": "fp32", "int8": "int8"},
            has_gpu=False,
        ),
        "torch": EngineEntry("prtool.engines.pytorch.eager", install_hint("export"), "PyTorch on the CUDA device, else on the CPU", _TYPED),
        "torch-compile": EngineEntry(
            "prtool.engines.pytorch.compiled", install_hint("export"), "torch.compile on the CUDA device, else on the CPU", _TYPED
        ),
        "trt": EngineEntry("prtool.engines.trt.tensorrt", install_hint("tensorrt"), "TensorRT on an NVIDIA GPU", _TYPED, builds_ahead=True),
        "trt-rtx": EngineEntry(
            "prtool.engines.trt.rtx", install_hint("tensorrt-rtx"), "TensorRT-RTX on an RTX GPU; builds without one", _TYPED, builds_ahead=True
        ),
    }
)


def graph_precision(engine: str, precision: str) -> str:
    """The precision of the graphs that an engine loads to compute in `precision`; ConfigError for an unknown name, or where it cannot."""
    known = _entry(engine).precisions
    if not isinstance(precision, str):
        raise ConfigError(f"precision = {printable(repr(precision))}, but it must be one of {', '.join(known)}")
    if precision not in known:
        others = [name for name, entry in ENGINES.items() if precision in entry.precisions]
        elsewhere = f"; {', '.join(others)} can" if others else ""
        raise ConfigError(f"precision = {printable(repr(precision))}, but engine {engine} computes in {', '.join(known)}{elsewhere}")
    return known[precision]


def open_engine(name: str, model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions) -> Engine:
    """Opens one ONNX file with the engine of that name, a key of `ENGINES`.

    Raises:
        ConfigError: no engine has that name, or it runs on the CPU and the options name a GPU other than 0.
        EngineUnavailable: its library cannot be imported.
        EngineError: it was in use before this process was forked; and as `EngineModule.open_graph`.
    """
    if options.device and not _entry(name).has_gpu:
        others = [other for other, entry in ENGINES.items() if entry.has_gpu]
        raise ConfigError(f"device = {options.device}, but engine {name} runs on the CPU; leave it out, or take one of {', '.join(others)}")
    module = _load(name)
    check_engine(name)
    opened = module.open_graph(model_path, inputs, options)
    track(opened, name)
    return opened


def builder(name: str) -> BuilderModule:
    """The module of an engine that builds ahead; ConfigError for any other, EngineUnavailable where its library cannot be imported."""
    if not _entry(name).builds_ahead:
        others = [other for other, entry in ENGINES.items() if entry.builds_ahead]
        raise ConfigError(f"engine {name} builds nothing ahead: it loads the bundle's graphs as they are; engines to build are {', '.join(others)}")
    return cast(BuilderModule, _load(name))


def probe(name: str) -> EngineInfo:
    """What would run on this machine; raises ConfigError for an unknown name, EngineUnavailable where it cannot run."""
    return _load(name).probe()


def list_engines() -> list[EngineStatus]:
    """Every engine by name, with what would run here or the reason why it would not."""
    found = []
    for name, entry in ENGINES.items():
        try:
            found.append(EngineStatus(name, entry.description, probe(name), reason=""))
        except EngineUnavailable as cause:
            found.append(EngineStatus(name, entry.description, None, reason=str(cause)))
    return found


def _entry(name: str) -> EngineEntry:
    check_value("engine", str(name), choices=tuple(ENGINES))
    return ENGINES[str(name)]


def _load(name: str) -> EngineModule:
    entry = _entry(name)
    try:
        return cast(EngineModule, importlib.import_module(entry.module))
    except ImportError as cause:
        raise EngineUnavailable(f"engine {name} cannot be imported ({cause}); {entry.install}") from cause
