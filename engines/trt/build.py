"""From an ONNX file to a TensorRT plan; one path for TensorRT 10.12 and later, 11, and TensorRT-RTX. Needs a GPU only where the library does.

Networks are strongly typed: the precision is that of the ONNX graph, and TF32 is off, so that float32 is float32.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from prtool.engines.base import BuildOptions, Profile, check_file, check_signature
from prtool.engines.profiles import shape_names
from prtool.errors import ConfigError, EngineError, EngineUnavailable
from prtool.files import write_bytes
from prtool.manifest import TensorSpec

_log = logging.getLogger(__name__)
_DIGEST_BYTES = 32
_FLAGS = {"version_compatible": "VERSION_COMPATIBLE", "strip_weights": "STRIP_PLAN"}
# What the libraries say where the driver is missing, too old, or finds no GPU.
_NO_DEVICE = ("cudaError 35", "cudaError 100", "insufficient for CUDA runtime", "no CUDA-capable device", "CUDA initialization failure")


class Messages:
    """The errors of a TensorRT library since they were last taken; the library itself prints nothing.

    All builders and runtimes of a process share them, as TensorRT wants, so errors of two threads can mix.
    """

    def __init__(self, trt: Any) -> None:  # noqa: ANN401 - the library has no types
        self._found: deque[str] = deque(maxlen=20)
        found, worst = self._found, int(trt.ILogger.Severity.ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, text: str) -> None:  # noqa: ANN401
                if int(severity) <= worst:
                    found.append(text)

        self.logger: Any = Logger()

    def take(self) -> str:
        """Every error once, and forgets them."""
        texts = [self._found.popleft() for _ in range(len(self._found))]
        return "; ".join(dict.fromkeys(texts)) or "the library gives no reason"


@dataclass(frozen=True)
class TrtLibrary:
    """One of the TensorRT libraries.

    Attributes:
        engine: the engine's name in the registry.
        title: the library's name for people.
        module: the imported module.
        messages: its errors.
        times_kernels: the builder runs kernels to choose among them, so a timing cache saves time.
        lacks: build options that it has not, by their names in `BuildOptions`, and why.
    """

    engine: str
    title: str
    module: Any
    messages: Messages
    times_kernels: bool
    lacks: Mapping[str, str]

    @property
    def version(self) -> str:
        """The library's version."""
        return str(self.module.__version__)

    def failure(self, problem: str) -> EngineError:
        """An error with the library's own reason; of the kind that says so where there is no usable GPU."""
        reason = self.messages.take()
        if any(sign in reason for sign in _NO_DEVICE):
            return EngineUnavailable(f"{problem}: {reason}; {self.title} finds no usable GPU, check the driver with nvidia-smi")
        return EngineError(f"{problem}: {reason}")


def check_options(library: TrtLibrary, options: BuildOptions) -> None:
    """Raises ConfigError for an option that this library, or this version of it, lacks."""
    missing = {name: f"version {library.version} has no such flag" for name, flag in _FLAGS.items() if not hasattr(library.module.BuilderFlag, flag)}
    for name, why in {**missing, **library.lacks}.items():
        if getattr(options, name):
            raise ConfigError(f"{name} = {getattr(options, name)}, but {library.title} cannot do that: {why}; build without it")


def build_plan(
    library: TrtLibrary, model_path: Path, inputs: Sequence[TensorSpec], profiles: Sequence[Profile], options: BuildOptions, timing_file: Path
) -> bytes:
    """Builds the plan of one graph.

    Args:
        library, model_path, inputs: what builds which graph; its symbolic axes name the ranges of the profiles.
        profiles: the ranges to build for, as `graph_profiles` gives them.
        options: how to build, after `check_options`; `batch` and `keeps` are in `profiles` already.
        timing_file: where the timings of kernels are kept, for a library that takes some.

    Raises:
        EngineUnavailable: the library builds only with a GPU and finds none.
        EngineError: the file is missing or damaged, or the library rejects it; the message has every reason that it gives.
    """
    trt = library.module
    library.messages.take()
    builder = _new_builder(library)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.messages.logger)
    _parse(library, parser, network, model_path, inputs)
    config = builder.create_builder_config()
    _configure(library, config, options)
    for profile in profiles if any(profiles) else ():
        _add_profile(library, builder, config, network, {spec.name: spec for spec in inputs}, profile)
    timings = _set_timings(library, config, timing_file) if library.times_kernels and options.timing_cache else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise library.failure(f"{library.title} cannot build {model_path}")
    if timings is not None:
        content = bytes(timings.serialize())
        write_bytes(timing_file, hashlib.sha256(content).digest() + content)
    return bytes(plan)


def _new_builder(library: TrtLibrary) -> Any:  # noqa: ANN401
    try:
        return library.module.Builder(library.messages.logger)
    except (TypeError, RuntimeError) as cause:  # the binding got no builder: TensorRT needs a GPU to build
        raise library.failure(f"{library.title} cannot build on this machine ({cause})") from cause


def _parse(library: TrtLibrary, parser: Any, network: Any, path: Path, inputs: Sequence[TensorSpec]) -> None:  # noqa: ANN401
    check_file(path)
    if not parser.parse_from_file(str(path)):
        reasons = "; ".join(_parser_error(parser.get_error(place)) for place in range(parser.num_errors))
        raise EngineError(f"{library.title} cannot load {path}: {reasons or library.messages.take()}; copy or export the bundle again")
    check_signature(path, (network.get_input(place).name for place in range(network.num_inputs)), inputs)


def _parser_error(error: Any) -> str:  # noqa: ANN401
    node, kind = error.node_name(), error.node_operator()
    where = f"node {node!r} ({kind}): " if node or kind else ""
    return f"{where}{error.desc()}"


def _configure(library: TrtLibrary, config: Any, options: BuildOptions) -> None:  # noqa: ANN401
    trt = library.module
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = options.level
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    for name, flag in _FLAGS.items():
        if getattr(options, name):
            config.set_flag(getattr(trt.BuilderFlag, flag))


def _add_profile(library: TrtLibrary, builder: Any, config: Any, network: Any, specs: Mapping[str, TensorSpec], profile: Profile) -> None:  # noqa: ANN401
    made = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        spec = specs[tensor.name]
        if tensor.is_shape_tensor:
            made.set_shape_input(tensor.name, *zip(*(astuple(profile[name]) for name in shape_names(spec)), strict=True))
        elif any(isinstance(axis, str) for axis in spec.shape):
            sizes = [astuple(profile[axis]) if isinstance(axis, str) else (axis,) * 3 for axis in spec.shape]
            made.set_shape(tensor.name, *zip(*sizes, strict=True))
    if config.add_optimization_profile(made) < 0:
        raise library.failure(f"{library.title} rejects the profile {dict(profile)}")


def _set_timings(library: TrtLibrary, config: Any, path: Path) -> Any:  # noqa: ANN401
    """Gives the builder what earlier builds measured; a damaged file is not given to it."""
    content = path.read_bytes() if path.is_file() else b""
    digest, timings = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if content and hashlib.sha256(timings).digest() != digest:
        _log.warning("%s is damaged and is not used; kernels are timed again", path)
        timings = b""
    cache = config.create_timing_cache(timings)
    if not config.set_timing_cache(cache, False):
        raise library.failure(f"{library.title} rejects the timings in {path}; remove the file")
    return cache
