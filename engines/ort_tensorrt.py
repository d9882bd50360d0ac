"""ONNX Runtime's TensorRT provider: TensorRT engines for the parts of a graph that it takes, CUDA for the rest."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnxruntime
from filelock import FileLock

from prtool.engines.base import EngineInfo, GraphOptions, Profile, ShapeRange
from prtool.engines.cache.key import EngineKey, onnx_digest
from prtool.engines.cache.record import default_root
from prtool.engines.nvidia import gpu
from prtool.engines.ort.gpu import CUDA, TENSORRT, GpuSession, OrtGpuEngine, cuda_settings, open_on, probe_gpu, require
from prtool.errors import ConfigError, EngineError
from prtool.files import sha256_file, storage_errors, write_json
from prtool.manifest import TensorSpec
from prtool.strict import parse_json, read_regular

_NAME = "ort-tensorrt"
_RECORD = "files.json"
_RECORD_BYTES = 1 << 20
_MIB = 2**20


def probe() -> EngineInfo:
    """What would run; see `probe_gpu`. Whether TensorRT's libraries are there shows when a graph is opened."""
    return probe_gpu(_NAME, TENSORRT)


def open_graph(model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions) -> OrtGpuEngine:
    """Loads an ONNX file and builds its engines, or takes those that an earlier call built; see `open_on`.

    Raises:
        EngineError: as `open_on`, or a stored engine is not what was built.
        StorageError: engines cannot be written.
    """
    require(_NAME, TENSORRT)
    if not model_path.is_file():
        raise EngineError(f"{model_path} is missing; copy the whole bundle again, or export it again")
    folder = engine_folder(model_path, inputs, options)

    def plan(stream: int) -> GpuSession:
        cuda = cuda_settings(options, stream)
        trt = tensorrt_settings(inputs, options, folder) | {name: cuda[name] for name in ("device_id", "user_compute_stream") if name in cuda}
        return GpuSession(_NAME, [(TENSORRT, trt), (CUDA, cuda)], lambda: built_here(folder))

    return open_on(model_path, inputs, options, plan)


def engine_folder(model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions) -> Path:
    """Where the provider keeps this graph's engines; everything they depend on is in the folder's name, but TensorRT's own version.

    TensorRT refuses an engine of another version of itself.

    Raises:
        EngineUnavailable: there is no such GPU.
    """
    device = gpu(options.device)
    key = EngineKey(
        onnx_sha256=onnx_digest(model_path),
        precision=options.precision,
        profiles=json.dumps(_shapes(inputs, options.profiles)),
        builder=f"level={options.build.level} workspace_mib={options.build.workspace_mib}",
        library=f"onnxruntime {TENSORRT}",
        library_version=onnxruntime.__version__,
        device=device.name,
        compute_capability=device.compute_capability,
        driver=device.driver,
    )
    return (options.cache or default_root()) / _NAME / key.digest


def tensorrt_settings(inputs: Sequence[TensorSpec], options: GraphOptions, folder: Path) -> dict[str, str]:
    """Options of the TensorRT provider.

    No precision flag is among them: without one the provider makes strongly typed networks, whose
    arithmetic is what the graph says.
    """
    settings = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": str(int(options.build.timing_cache)),
        "trt_timing_cache_path": str(folder),
        "trt_builder_optimization_level": str(options.build.level),
    }
    if options.build.workspace_mib:
        settings["trt_max_workspace_size"] = str(options.build.workspace_mib * _MIB)
    return settings | _shapes(inputs, options.profiles)


@contextlib.contextmanager
def built_here(folder: Path) -> Iterator[None]:
    """Lets one process at a time load or build the engines of a folder, which the provider loads unseen.

    Raises:
        EngineError: a file in it is not what an earlier build left: truncated, altered or unknown.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        record = folder / _RECORD
        known = _read(record)
        for name, digest in _digests(folder).items():
            if known.get(name) != digest:
                raise EngineError(f"{folder / name} is not what was built here, so it is not loaded; delete the folder {folder} to build it again")
        yield
        write_json(record, _digests(folder))


def _read(record: Path) -> Mapping[str, str]:
    if not record.is_file():
        return {}
    try:
        known = parse_json(read_regular(record, _RECORD_BYTES))
    except (OSError, ValueError) as cause:
        raise EngineError(f"{record} is damaged ({cause}); delete the folder {record.parent} to build its engines again") from cause
    return known if isinstance(known, dict) else {}


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each engine and profile file; timing caches change with every build and are not executed."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix in (".engine", ".profile"))
    return {path.name: sha256_file(path) for path in files}


def _shapes(inputs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> dict[str, str]:
    """The ranges of every input, as "pixels:1x3x224x224,k:98"; several profiles repeat the names."""
    bounds = list(dict.fromkeys(tuple(_bounds(spec, profile) for spec in inputs) for profile in profiles))
    if not bounds:
        return {}
    names = ("min", "opt", "max")
    return {f"trt_profile_{name}_shapes": ",".join(shapes[place] for profile in bounds for shapes in profile) for place, name in enumerate(names)}


def _bounds(spec: TensorSpec, profile: Profile) -> tuple[str, str, str]:
    """Least, usual and most shape of one input; of an input that is itself a shape, its values."""
    if spec.name in profile and all(isinstance(axis, int) for axis in spec.shape):
        ranges = [profile[spec.name]] * int(spec.shape[0])
    else:
        ranges = [_range(axis, profile) for axis in spec.shape]
    bounds = ([item.least for item in ranges], [item.usual for item in ranges], [item.most for item in ranges])
    least, usual, most = (f"{spec.name}:{'x'.join(str(size) for size in sizes)}" for sizes in bounds)
    return least, usual, most


def _range(axis: int | str, profile: Profile) -> ShapeRange:
    if isinstance(axis, int):
        return ShapeRange(axis, axis, axis)
    if axis not in profile:
        raise ConfigError(f"axis {axis} has no range to build for, only {', '.join(profile)} have; add it to the profile")
    return profile[axis]
