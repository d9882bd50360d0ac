"""Builds the engine files of a bundle ahead of use, and reports for each whether it was built and why."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prtool.bundle import Bundle
from prtool.engines.base import EngineOptions, GraphOptions
from prtool.engines.cache.record import NO_DEVICE
from prtool.engines.profiles import profiles
from prtool.engines.registry import builder, graph_precision
from prtool.progress import Progress, SilentProgress, stage


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
            [item.graph, "built" if item.built else "taken", f"{item.size / 2**20:.1f}", f"{item.seconds:.1f}", item.reason, item.engine_file]
            for item in self.graphs
        ]
        return columns, rows


def build_bundle(
    bundle: str | Path | Bundle, engine: str, precision: str, options: EngineOptions, progress: Progress | None = None, *, rebuild: bool = False
) -> BuildReport:
    """Builds an engine of every image graph of a bundle, or takes it from the cache; `rebuild` builds also what is there.

    `device`, `cache` and `build` of the options are used. Progress advances once per graph.

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
    roles = {role: graph for role, graph in opened.manifest.graphs[held].items() if role != "text"}
    target = module.build_target(options.device)
    made, library = [], ("", "")
    shown = progress or SilentProgress()
    with stage(shown, f"building {engine} engines", len(roles)):
        for role, graph in roles.items():
            with opened.unchanged(graph.file) as path:
                found = module.build_graph(path, graph.inputs, chosen, rebuild=rebuild)
            record = found.record
            library = record.key.library, record.key.library_version
            made.append(BuiltGraph(role, graph.file, str(found.path), record.size, record.seconds, found.built, found.reason))
            shown.advance()
    state = f"built, not run: {NO_DEVICE}" if target.startswith(NO_DEVICE) else "built"
    return BuildReport(str(opened.path), engine, *library, precision, target, state, tuple(made))
