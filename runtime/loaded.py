"""What an encoder holds once it is loaded: a bundle's graphs on one engine, as its options say."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from prtool.bundle import Bundle
from prtool.engines.base import BuildOptions, EngineOptions, ShapeRange
from prtool.manifest import Manifest
from prtool.runtime.classes import ClassTable
from prtool.runtime.pipeline import Graphs, Pipeline
from prtool.runtime.text import TextEncoder

# Prompts come in other numbers than images, so no profile of the images fits them.
_TEXT_BUILD = BuildOptions(batch=ShapeRange(1, 64, 1024))


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How an encoder was loaded, as `Encoder.load` takes it; it can be pickled. A bundle that lies at `path` later has the same manifest."""

    path: Path
    manifest: Manifest
    engine: str
    mode: str
    precision: str
    options: EngineOptions
    verify: bool
    jpeg_scaling: bool


class Loaded:
    """A bundle's graphs on one engine: those of the mode at once, all others on first use."""

    def __init__(self, bundle: Bundle, how: LoadOptions) -> None:
        self.bundle = bundle
        self.pipeline = Pipeline(Graphs(bundle, how.engine, how.precision, how.options), how.mode)
        self._text_graphs = Graphs(bundle, how.engine, "fp32", replace(how.options, streams=1, build=_TEXT_BUILD))
        self.text = TextEncoder(self._text_graphs)

    @functools.cached_property
    def classes(self) -> ClassTable:
        """The bundle's classes; raises BundleError where it has none."""
        return ClassTable.of(self.bundle)

    def close(self) -> None:
        """Frees every graph."""
        self.pipeline.close()
        self._text_graphs.close()
