"""From an ONNX file to a running TensorRT engine: the key, the cache, the build, the load. Shared by `trt` and `trt-rtx`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prtool.engines.base import BuildOptions, EngineInfo, GraphOptions
from prtool.engines.cache.record import NO_DEVICE, EngineKey, graph_digests
from prtool.engines.cache.store import CachedEngine, EngineCache
from prtool.engines.cuda import cuda_arrays
from prtool.engines.nvidia import DeviceScope, Gpu, gpu
from prtool.engines.profiles import graph_profiles
from prtool.engines.trt.build import TrtLibrary, build_plan, check_options
from prtool.engines.trt.run import TrtEngine, TrtPlan
from prtool.errors import EngineError, EngineUnavailable
from prtool.manifest import TensorSpec

# Raise it when the same options come to build something else; the C++ library loads plans of the same number.
_BUILDER = "1"
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}


def probe(library: TrtLibrary) -> EngineInfo:
    """What would run on the first GPU; EngineUnavailable where it or PyTorch's CUDA is missing, though building may still be possible."""
    found = gpu(0)
    cuda_arrays(0)
    return EngineInfo(library.engine, library.version, str(found))


def build_target(device: int) -> str:
    """The GPU that a build is for; "no device" and the reason where there is none."""
    try:
        return str(gpu(device))
    except EngineUnavailable as cause:
        return f"{NO_DEVICE}: {cause}"


def build_graph(library: TrtLibrary, model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions, *, rebuild: bool = False) -> CachedEngine:
    """The engine file of one graph; see `BuilderModule.build_graph`."""
    check_options(library, options.build)
    return _obtain(library, model_path, inputs, _key(library, model_path, inputs, options), options.cache, rebuild=rebuild)


def open_graph(library: TrtLibrary, model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions) -> TrtEngine:
    """Builds or takes the engine of one graph, and loads it.

    With the default build options it takes the engine of this graph and machine that was built or used last, whatever its
    profiles: what `prtool build` made is what the other commands run. Raises as `EngineModule.open_graph` and `build_graph`.
    """
    found = gpu(options.device)
    arrays = cuda_arrays(options.device)
    check_options(library, options.build)
    key = _key(library, model_path, inputs, options)
    if options.build == BuildOptions():
        key = EngineCache(options.cache).latest(key) or key
    built = _obtain(library, model_path, inputs, key, options.cache)
    scope = DeviceScope(options.device)
    with scope:
        keeps, engine = _load(library, built, model_path)
    plan = TrtPlan(
        graph=model_path.name,
        engine=library.engine,
        inputs=tuple(inputs),
        outputs=_outputs(library, engine),
        profiles=key.profiles,
        new_context=lambda: engine.create_execution_context(library.module.ExecutionContextAllocationStrategy.USER_MANAGED),
        failure=library.failure,
        on_device=scope,
        keeps=keeps,
    )
    return TrtEngine(plan, arrays, EngineInfo(library.engine, library.version, str(found)))


def _key(library: TrtLibrary, model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions) -> EngineKey:
    try:
        found = gpu(options.device)
    except EngineUnavailable:
        found = Gpu(NO_DEVICE, NO_DEVICE, NO_DEVICE)
    build_options = dataclasses.asdict(options.build)
    return EngineKey(
        *graph_digests(model_path),
        precision=options.precision,
        profiles=graph_profiles(inputs, options.profiles, options.build),
        options={name: value for name, value in build_options.items() if name not in ("batch", "keeps")},
        builder=_BUILDER,
        library=library.module.__name__,
        library_version=library.version,
        device=found.name,
        compute_capability=found.compute_capability,
        driver=found.driver,
    )


def _obtain(
    library: TrtLibrary, model_path: Path, inputs: Sequence[TensorSpec], key: EngineKey, root: Path | None, *, rebuild: bool = False
) -> CachedEngine:
    cache = EngineCache(root)
    device = "".join(character if character.isalnum() else "-" for character in key.device)
    timing_file = cache.timing_folder / f"{library.engine}-{library.version}-{device}.timing"

    def write(path: Path) -> None:
        options: dict[str, Any] = key.options
        path.write_bytes(build_plan(library, model_path, inputs, key.profiles, BuildOptions(**options), timing_file))

    return cache.obtain(key, write, source=str(model_path.absolute()), rebuild=rebuild)


def _load(library: TrtLibrary, built: CachedEngine, model_path: Path) -> tuple[tuple[Any, ...], Any]:
    """What must stay alive, and the engine."""
    trt = library.module
    content = built.read()
    library.messages.take()
    runtime = trt.Runtime(library.messages.logger)
    # Such a plan brings the part of the library that runs it; its digest was checked just now.
    runtime.engine_host_code_allowed = bool(built.record.key.options["version_compatible"])
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        key = built.record.key
        made = f"made by {key.library} {key.library_version} for {key.device}"
        raise library.failure(f"{library.title} {library.version} does not load {built.path}, {made}; build it again with --rebuild")
    if built.record.key.options["strip_weights"]:
        _refit(library, engine, model_path)
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
