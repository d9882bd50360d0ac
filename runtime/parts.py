"""What an encoder is made of: loaded from a few plain arguments, which travel to other processes in its place."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from prtool.bundle import Bundle
from prtool.engines.base import Array, ArrayLibrary, BuildOptions, DeviceEngine, EngineInfo, EngineOptions, ShapeRange
from prtool.errors import BundleError, ConfigError
from prtool.manifest import Manifest
from prtool.runtime.device import DevicePipeline, DeviceSplitPipeline
from prtool.runtime.pipeline import MODES, Graphs, PipelineKind, SplitPipeline
from prtool.runtime.text.encode import TextEncoder
from prtool.text_safety import printable

_TEXT_BUILD = BuildOptions(batch=ShapeRange(1, 64, 1024))


@dataclass(frozen=True, slots=True)
class LoadArguments:
    """How an encoder was loaded; it can be pickled.

    Attributes:
        path: the bundle's directory, absolute.
        manifest: the bundle's; what lies at `path` later must have the same.
        engine, mode, precision, options, verify: as `Encoder.load` takes them.
    """

    path: Path
    manifest: Manifest
    engine: str
    mode: str
    precision: str
    options: EngineOptions
    verify: bool

    def reload(self) -> "Parts":
        """Opens the bundle again and loads its graphs.

        Raises:
            BundleError: the bundle is not the one that it was.
            ConfigError, EngineError: as `Parts.load`.
        """
        bundle = Bundle.open(self.path, verify=self.verify)
        if bundle.manifest != self.manifest:
            raise BundleError(f"{self.path} is no longer the bundle that this encoder was loaded from; load the encoder again")
        return Parts.load(bundle, self)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A bundle's graphs on one engine, and the ways through them.

    Attributes:
        graphs, text_graphs: for images, and for prompts.
        info: of the engine that takes the pixels.
        arrays: on its device; None where it keeps none there.
        device: the way that stays on the device, where there is one.
        embed: prepared pixels and counts to embeddings, from and to the host.
        split: the graphs step by step.
    """

    bundle: Bundle
    graphs: Graphs
    text_graphs: Graphs
    text: TextEncoder
    info: EngineInfo
    arrays: ArrayLibrary | None
    device: DevicePipeline | None
    embed: Callable[[Array, tuple[int, ...]], Array]
    split: SplitPipeline

    @classmethod
    def load(cls, bundle: Bundle, arguments: LoadArguments) -> "Parts":
        """Loads the graphs of the mode; what else there is, on first use.

        Raises:
            ConfigError: unknown engine, mode or precision, or the bundle lacks a graph of the mode.
            EngineUnavailable: the engine's library is not installed, or finds no device.
            EngineError: the engine cannot load a graph.
        """
        mode, engine, options = arguments.mode, arguments.engine, arguments.options
        graphs = Graphs(bundle, engine, arguments.precision, options)
        # Prompts come in other numbers than images, so nothing that was narrowed for images holds for them.
        text_graphs = Graphs(bundle, engine, "fp32", replace(options, streams=1, build=_TEXT_BUILD))
        pipeline = pipeline_kind(mode)(graphs)
        first = pipeline.open()
        arrays = first.arrays if isinstance(first, DeviceEngine) else None
        device = None if arrays is None else DevicePipeline(graphs, mode)
        embed = pipeline.embed if device is None else device.embed
        split = SplitPipeline(graphs) if arrays is None else DeviceSplitPipeline(graphs)
        return cls(bundle, graphs, text_graphs, TextEncoder(text_graphs), first.info, arrays, device, embed, split)

    def close(self) -> None:
        """Frees every graph; a second call does nothing."""
        if self.device is not None:
            self.device.forget()
        self.graphs.close()
        self.text_graphs.close()


def pipeline_kind(mode: str) -> PipelineKind:
    """The way through the graphs of that name.

    Raises:
        ConfigError: there is none; the message has those there are.
    """
    kind = MODES.get(mode) if isinstance(mode, str) else None
    if kind is None:
        near = difflib.get_close_matches(mode, MODES, n=1) if isinstance(mode, str) else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"mode = {printable(repr(mode))}, but it must be one of {', '.join(MODES)}{hint}")
    return kind
