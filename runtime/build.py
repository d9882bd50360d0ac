"""Builds the engine files of a bundle ahead of use, and reports for each whether it was built and why."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prtool.bundle import Bundle
from prtool.engines.base import BuildOptions, EngineOptions, GraphOptions, ShapeRange
from prtool.engines.cache.key import NO_DEVICE
from prtool.engines.profiles import profiles
from prtool.engines.registry import builder, graph_precision
from prtool.errors import ConfigError
from prtool.manifest import Manifest
from prtool.progress import Progress, stage
from prtool.spec import Keep

_NO_IMAGE_GRAPH = "text"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """One engine file.

    Attributes:
        role: of the graph in the bundle: "pre", "post", "fused", "full", "mid_1", ...
        graph: the ONNX file's name in the bundle.
        engine_file: path of the engine.
        size: of the engine file, in bytes.
        seconds: what its build took, now or when it was built.
        built: whether it was built now; else it was in the cache.
        reason: why.
    """

    role: str
    graph: str
    engine_file: str
    size: int
    seconds: float
    built: bool
    reason: str


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What `build_bundle` made.

    Attributes:
        bundle: the bundle's folder.
        engine, library, version: what built.
        precision: the arithmetic of the engines.
        target: the device they were built for, human-readable.
        state: "built", or "built, not run: no device".
        graphs: one engine a graph.
    """

    bundle: str
    engine: str
    library: str
    version: str
    precision: str
    target: str
    state: str
    graphs: tuple[BuiltGraph, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names and rows, one a graph."""
        columns = ["graph", "engine", "MiB", "s", "why", "file"]
        rows = [
            [item.graph, "built" if item.built else "taken", f"{item.size / _MIB:.1f}", f"{item.seconds:.1f}", item.reason, item.engine_file]
            for item in self.graphs
        ]
        return columns, rows


def build_bundle(
    bundle: str | Path | Bundle, engine: str, precision: str, options: EngineOptions, progress: Progress, *, rebuild: bool = False
) -> BuildReport:
    """Builds an engine of every image graph of a bundle, or takes it from the cache.

    Args:
        bundle: a bundle directory, or an opened bundle.
        engine: a name of the engine registry, of one that builds ahead.
        precision: "fp32", or another that the engine has and the bundle holds graphs for.
        options: `device`, `cache` and `build` are used.
        progress: advanced once per graph.
        rebuild: build also what is in the cache.

    Raises:
        BundleError: the bundle is missing or damaged.
        ConfigError: the engine builds nothing ahead, cannot compute so, lacks an option, or the bundle lacks the precision.
        KeepError: a count of `options.build` is outside the bundle's range.
        EngineUnavailable: the engine's library is not installed, or builds only with a device and finds none.
        EngineError: the library rejects a graph, or a stored engine is damaged.
        StorageError: an engine cannot be written.
    """
    module = builder(engine)
    held = graph_precision(engine, precision)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    chosen = GraphOptions.of(options, precision, profiles(opened.manifest, options.build))
    opened.graph("full", held)  # rejects a precision that the bundle lacks with the usual message
    roles = {role: graph for role, graph in opened.manifest.graphs[held].items() if role != _NO_IMAGE_GRAPH}
    target = module.build_target(options.device)
    made, library = [], ("", "")
    with stage(progress, f"building {engine} engines", len(roles)):
        for role, graph in roles.items():
            with opened.unchanged(graph.file) as path:
                found = module.build_graph(path, graph.inputs, chosen, rebuild=rebuild)
            record = found.record
            library = record.key.library, record.key.library_version
            made.append(BuiltGraph(role, graph.file, str(found.path), record.size, record.seconds, found.built, found.reason))
            progress.advance()
    state = f"built, not run: {NO_DEVICE}" if target.startswith(NO_DEVICE) else "built"
    return BuildReport(str(opened.path), engine, *library, precision, target, state, tuple(made))


def build_options(manifest: Manifest, batch: str, keeps: Sequence[Keep], settings: Mapping[str, Any]) -> BuildOptions:
    """How to build, from what a person types.

    Args:
        manifest: turns keep ratios into counts.
        batch: "8", or "LEAST:USUAL:MOST".
        keeps: a narrow profile for each; none builds one profile over every count.
        settings: any other field of `BuildOptions`.

    Raises:
        ConfigError: the batch is not a range, or a setting is unknown or of the wrong kind.
        KeepError: a count is outside the bundle's range.
    """
    parts = batch.split(":")
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"batch = {batch!r}, but it must be a number, or LEAST:USUAL:MOST such as 1:8:32")
    numbers = [int(part) for part in parts]
    least, usual, most = numbers * 3 if len(numbers) == 1 else numbers
    defaults = BuildOptions()
    kinds = {item.name: type(getattr(defaults, item.name)) for item in dataclasses.fields(defaults) if item.name not in ("batch", "keeps")}
    for name, value in settings.items():
        if name not in kinds:
            raise ConfigError(f"{name} is not a build option; they are {', '.join(kinds)}")
        if type(value) is not kinds[name]:
            raise ConfigError(f"{name} = {value!r}, but it must be {'true or false' if kinds[name] is bool else 'a whole number'}")
    counts = tuple(dict.fromkeys(manifest.resolve(keep) for keep in keeps))
    return replace(defaults, batch=ShapeRange(least, usual, most), keeps=counts, **settings)
