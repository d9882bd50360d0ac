"""From an ONNX file to a running TensorRT engine: the key, the cache, the build, the load. Shared by `trt` and `trt-rtx`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prtool.engines.base import BuildOptions, EngineInfo, GraphOptions, Profile
from prtool.engines.cache.key import NO_DEVICE, EngineKey, onnx_digest
from prtool.engines.cache.store import CachedEngine, EngineCache
from prtool.engines.cuda import cuda_arrays
from prtool.engines.nvidia import DeviceScope, Gpu, gpu
from prtool.engines.trt.build import TrtLibrary, build_plan, check_options
from prtool.engines.trt.run import TrtContext, TrtEngine, TrtPlan
from prtool.engines.trt.shapes import graph_profiles, parse_profiles, profiles_text
from prtool.errors import EngineError, EngineUnavailable
from prtool.manifest import TensorSpec

# Raise it when the same options come to build something else.
_RECIPE = 1
# Fields of a key that follow from what the user asked for; the others from the graph and the machine.
_ASKED = ("profiles", "builder")
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}


@dataclass(frozen=True, slots=True)
class TrtGraph:
    """One graph to build or open: its ONNX file, its declared inputs, and how."""

    model_path: Path
    inputs: tuple[TensorSpec, ...]
    options: GraphOptions


def probe(library: TrtLibrary) -> EngineInfo:
    """What would run on the first GPU.

    Raises:
        EngineUnavailable: there is no driver or GPU, or no library for arrays on it; building may still be possible.
    """
    found = gpu(0)
    cuda_arrays(0)
    return EngineInfo(library.engine, library.version, str(found))


def build_target(device: int) -> str:
    """The GPU that a build is for, in words; "no device" and the reason where there is none."""
    try:
        return str(gpu(device))
    except EngineUnavailable as cause:
        return f"{NO_DEVICE}: {cause}"


def build(library: TrtLibrary, graph: TrtGraph, *, rebuild: bool = False) -> CachedEngine:
    """The engine file of one graph, from the cache or built now; without a GPU where the library can.

    Raises:
        ConfigError: an option that the library lacks, or an axis without a range.
        EngineUnavailable: the library builds only with a GPU and finds none.
        EngineError: the graph is missing or refused, or the stored engine is damaged.
        StorageError: the engine cannot be written.
    """
    check_options(library, graph.options.build)
    profiles = graph_profiles(graph.inputs, graph.options.profiles, graph.options.build)
    key = _key(library, graph, profiles)
    cache = EngineCache(graph.options.cache)
    timing_file = cache.timing_folder / f"{library.engine}-{library.version}-{_plain(key.device)}.timing"

    def write(path: Path) -> None:
        path.write_bytes(build_plan(library, graph.model_path, graph.inputs, profiles, graph.options.build, timing_file))

    return cache.obtain(key, write, source=str(graph.model_path.absolute()), rebuild=rebuild)


def open_engine(library: TrtLibrary, graph: TrtGraph) -> TrtEngine:
    """Builds or takes the engine of one graph, and loads it.

    Where no build options are asked for, it takes the engine of this graph and machine that was built or used last,
    whatever its ranges: what `prtool build` made is what the other commands run.

    Raises:
        EngineUnavailable: there is no GPU, or no library for arrays on it.
        ConfigError, EngineError, StorageError: as `build`; and EngineError where the library does not take the file.
    """
    found = gpu(graph.options.device)
    arrays = cuda_arrays(graph.options.device)
    wanted = _as_built_last(library, graph)
    built = build(library, wanted)
    scope = DeviceScope(graph.options.device)
    with scope:
        keeps, engine = _load(library, built, wanted)
    plan = TrtPlan(
        graph=graph.model_path.name,
        engine=library.engine,
        inputs=graph.inputs,
        outputs=_outputs(library, engine),
        profiles=wanted.options.profiles,
        new_context=lambda: _context(library, engine),
        failure=library.failure,
        on_device=scope,
        keeps=keeps,
    )
    return TrtEngine(plan, arrays, EngineInfo(library.engine, library.version, str(found)))


class TrtModule:
    """What the registry asks of the module of an engine that builds ahead, for one of the libraries."""

    def __init__(self, library: TrtLibrary) -> None:
        self._library = library

    def probe(self) -> EngineInfo:
        """What would run; see `probe`."""
        return probe(self._library)

    def build_target(self, device: int) -> str:
        """The GPU that a build is for, in words; see `build_target`."""
        return build_target(device)

    def open_graph(self, model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions) -> TrtEngine:
        """Builds or takes an engine, and loads it; see `open_engine`."""
        return open_engine(self._library, TrtGraph(model_path, tuple(inputs), options))

    def build_graph(self, model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions, *, rebuild: bool = False) -> CachedEngine:
        """The engine file of one graph, from the cache or built now; see `build`."""
        return build(self._library, TrtGraph(model_path, tuple(inputs), options), rebuild=rebuild)


def _as_built_last(library: TrtLibrary, graph: TrtGraph) -> TrtGraph:
    """The graph with the profiles and options of the engine to take, as far as the caller left them open."""
    options = graph.options
    own = graph_profiles(graph.inputs, options.profiles, options.build)
    asked = dataclasses.replace(graph, options=dataclasses.replace(options, profiles=own))
    if options.build != BuildOptions():
        return asked
    last = EngineCache(options.cache).latest(_key(library, asked, own), ignoring=_ASKED)
    if last is None or not last.key.builder.startswith(f"recipe={_RECIPE} "):
        return asked
    profiles = parse_profiles(last.key.profiles)
    build_options = _parse_builder(last.key.builder)
    return dataclasses.replace(graph, options=dataclasses.replace(options, profiles=profiles, build=build_options))


def _key(library: TrtLibrary, graph: TrtGraph, profiles: Sequence[Profile]) -> EngineKey:
    if not graph.model_path.is_file():
        raise EngineError(f"{graph.model_path} is missing; copy the whole bundle again, or export it again")
    try:
        found: Gpu = gpu(graph.options.device)
    except EngineUnavailable:
        found = Gpu(NO_DEVICE, NO_DEVICE, NO_DEVICE)
    return EngineKey(
        onnx_sha256=onnx_digest(graph.model_path),
        precision=graph.options.precision,
        profiles=profiles_text(profiles),
        builder=_builder_text(graph.options.build),
        library=library.module.__name__,
        library_version=library.version,
        device=found.name,
        compute_capability=found.compute_capability,
        driver=found.driver,
    )


def _builder_text(options: BuildOptions) -> str:
    """Every option but the ranges, which are in the profiles."""
    values = {item.name: getattr(options, item.name) for item in dataclasses.fields(options) if item.name not in ("batch", "keeps")}
    return f"recipe={_RECIPE} " + " ".join(f"{name}={int(value)}" for name, value in values.items())


def _parse_builder(text: str) -> BuildOptions:
    numbers = dict(part.split("=") for part in text.split(" ")[1:])
    defaults = BuildOptions()
    return BuildOptions(**{name: type(getattr(defaults, name))(int(number)) for name, number in numbers.items()})


def _load(library: TrtLibrary, built: CachedEngine, graph: TrtGraph) -> tuple[tuple[Any, ...], Any]:
    """What must stay alive, and the engine."""
    trt = library.module
    content = built.read()
    library.messages.take()
    runtime = trt.Runtime(library.messages.logger)
    # Such a plan brings the part of the library that runs it; its digest was checked just now.
    runtime.engine_host_code_allowed = graph.options.build.version_compatible
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        key = built.record.key
        made = f"made by {key.library} {key.library_version} for {key.device}"
        raise library.failure(f"{library.title} {library.version} does not load {built.path}, {made}; build it again with --rebuild")
    if graph.options.build.strip_weights:
        _refit(library, engine, graph.model_path)
    return (runtime, engine), engine


def _refit(library: TrtLibrary, engine: Any, model_path: Path) -> None:  # noqa: ANN401 - the library has no types
    """Puts the weights of the ONNX file into a plan that was built without them."""
    trt = library.module
    refitter = trt.Refitter(engine, library.messages.logger)
    parser = trt.OnnxParserRefitter(refitter, library.messages.logger)
    if not parser.refit_from_file(str(model_path)) or not refitter.refit_cuda_engine():
        reasons = "; ".join(parser.get_error(place).desc() for place in range(parser.num_errors))
        raise library.failure(f"{library.title} cannot put the weights of {model_path} into its engine ({reasons or 'no parser error'})")


def _outputs(library: TrtLibrary, engine: Any) -> dict[str, str]:  # noqa: ANN401
    names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
    outputs = [name for name in names if engine.get_tensor_mode(name) == library.module.TensorIOMode.OUTPUT]
    kinds = {name: engine.get_tensor_dtype(name).name for name in outputs}
    strange = {name: kind for name, kind in kinds.items() if kind not in _DTYPES}
    if strange:
        raise EngineError(f"outputs {strange} have dtypes that no array here has; known are {', '.join(_DTYPES)}")
    return {name: _DTYPES[kind] for name, kind in kinds.items()}


def _context(library: TrtLibrary, engine: Any) -> TrtContext | None:  # noqa: ANN401
    strategy = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
    return cast("TrtContext | None", engine.create_execution_context(strategy))


def _plain(name: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in name)
