"""From pixels to embeddings: through one fused graph, through split graphs with selection between them, or unpruned."""

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prtool.bundle import Bundle
from prtool.engines.base import Array, DeviceArray, DeviceEngine, Engine, EngineOptions, GraphOptions, check_outputs
from prtool.engines.forks import check_process
from prtool.engines.profiles import profiles
from prtool.engines.registry import graph_precision, open_engine
from prtool.errors import EngineError
from prtool.graphs.signature import roles_after_selection
from prtool.runtime.select import gather, select
from prtool.spec import PruneSpec


class Graphs:
    """The engines of one bundle at one precision, each opened on first use; safe from many threads."""

    def __init__(self, bundle: Bundle, engine: str, precision: str, options: EngineOptions) -> None:
        """Opens nothing yet.

        Args:
            bundle: an opened bundle.
            engine: a name of the engine registry.
            precision: the arithmetic asked for: "fp32", or another that the engine has and the bundle holds graphs for.
            options: how each engine runs.

        Raises:
            ConfigError: no engine has that name, or it cannot compute so.
        """
        self.bundle = bundle
        self._engine = engine
        self._precision = graph_precision(engine, precision)
        self._options = GraphOptions.of(options, precision, profiles(bundle.manifest, options.build))
        self._opened: dict[str, Engine] = {}
        self._closed = False
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def engine(self, role: str) -> Engine:
        """The engine of one role of the manifest ("pre", "fused", ...).

        Raises:
            ConfigError: the bundle has no such precision or role, or there is no such engine.
            EngineUnavailable: the engine's library is not installed.
            BundleError: the bundle changed since it was opened.
            EngineError: the graph cannot be loaded, `close` was called, or this process was forked since.
        """
        check_process(self._pid, f"the encoder of {self.bundle.path}")
        opened = self._opened.get(role)
        return opened if opened is not None else self._open(role)

    def run(self, role: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph of one role; what it gives has the declared names, dtypes and shapes.

        Raises:
            ShapeError, EngineError: as `engine`, `Engine.run` and `check_outputs`.
        """
        outputs = self.engine(role).run(inputs)
        check_outputs(self.bundle.graph(role, self._precision), inputs, outputs)
        return outputs

    def run_device(self, role: str, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """The same on the engine's device, without waiting for it.

        Raises:
            ShapeError, EngineError: as `engine`, `DeviceEngine.run_device` and `check_outputs`; the engine keeps no arrays on a device.
        """
        outputs = device_engine(self.engine(role)).run_device(inputs)
        check_outputs(self.bundle.graph(role, self._precision), inputs, outputs)
        return outputs

    def close(self) -> None:
        """Closes every engine; `engine` and `run` fail afterwards. A second call does nothing, nor does one in a forked child."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, {}
        for engine in opened.values():
            engine.close()

    def _open(self, role: str) -> Engine:
        with self._lock:
            if self._closed:
                raise EngineError(f"the encoder of {self.bundle.path} is closed; load it again to use it")
            if role not in self._opened:
                graph = self.bundle.graph(role, self._precision)
                with self.bundle.unchanged(graph.file) as path:
                    engine = open_engine(self._engine, path, graph.inputs, self._options)
                self._opened[role] = engine
            return self._opened[role]


def device_engine(engine: Engine) -> DeviceEngine:
    """The engine as one that keeps arrays on its device.

    Raises:
        EngineError: it takes and gives arrays of the host only.
    """
    if not isinstance(engine, DeviceEngine):
        raise EngineError(
            f"engine {engine.info.name} keeps no arrays on a device; use encode_pixels, or load engine torch, trt or another that `prtool doctor` "
            "shows on a GPU"
        )
    return engine


@dataclass(frozen=True, slots=True)
class Stage:
    """One finished step of the split mode.

    Attributes:
        name: "pre", "select_1", "mid_1", "select_2", ..., "post".
        tensors: what the step gave: a graph's outputs, or "tokens" and "indices" of a selection. What lies on a device is
            copied to the host when it is looked at.
    """

    name: str
    tensors: Mapping[str, Array]


class Steps(Protocol):
    """What the split mode is made of, on the host or on a device."""

    def run(self, role: str, inputs: Mapping[str, DeviceArray]) -> Mapping[str, DeviceArray]:
        """Runs the graph of one role."""
        ...

    def select(self, scores: DeviceArray, k: int) -> DeviceArray:
        """See `prtool.runtime.select.select`."""
        ...

    def gather(self, tokens: DeviceArray, indices: DeviceArray, prefix_tokens: int, learnable_tokens: int) -> DeviceArray:
        """See `prtool.runtime.select.gather`."""
        ...


class HostSteps:
    """Steps on numpy arrays."""

    def __init__(self, graphs: Graphs) -> None:
        self.run = graphs.run
        self.select = select
        self.gather = gather


def split_steps(steps: Steps, prune: PruneSpec, pixels: DeviceArray, counts: tuple[int, ...]) -> Iterator[tuple[str, Mapping[str, DeviceArray]]]:
    """PRE, then for each location a selection and the graph behind it; (stage name, what it gave), one step for each `next`."""
    outputs, carried = steps.run("pre", {"pixels": pixels}), "tokens"
    yield "pre", outputs
    for place, (role, k) in enumerate(zip(roles_after_selection(prune), counts, strict=True), start=1):
        indices = steps.select(outputs["scores"], k)
        tokens = steps.gather(outputs[carried], indices, prune.prefix_tokens, prune.learnable_tokens)
        yield f"select_{place}", {"tokens": tokens, "indices": indices}
        # A graph cannot give a tensor of the name it takes: a middle graph turns "tokens" into "tokens_out".
        outputs, carried = steps.run(role, {"tokens": tokens}), "tokens_out"
        yield role, outputs


class Pipeline(Protocol):
    """One way from pixels to embeddings; `embed` may be called from many threads at once."""

    def open(self) -> Engine:
        """Loads every graph now, rather than in the first call; returns the engine that takes the pixels."""
        ...

    def embed(self, pixels: Array, counts: tuple[int, ...]) -> Array:
        """Encodes one batch.

        Args:
            pixels: (batch, 3, height, width) float32, RGB, normalised as the manifest says.
            counts: patches kept at each location, falling.

        Returns:
            (batch, E) embeddings, L2-normalised, in the graph's dtype.
        """
        ...


class FusedPipeline:
    """One graph that selects inside; the counts are its input `k`."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs

    def open(self) -> Engine:
        """Loads the fused graph; see `Pipeline.open`."""
        return self._graphs.engine("fused")

    def embed(self, pixels: Array, counts: tuple[int, ...]) -> Array:
        """Encodes one batch; see `Pipeline.embed`."""
        return self._graphs.run("fused", {"pixels": pixels, "k": np.array(counts, np.int64)})["embedding"]


class FullPipeline:
    """The unpruned graph, the baseline of every speed-up; the counts play no part."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs

    def open(self) -> Engine:
        """Loads the unpruned graph; see `Pipeline.open`."""
        return self._graphs.engine("full")

    def embed(self, pixels: Array, counts: tuple[int, ...]) -> Array:  # noqa: ARG002 - nothing is dropped
        """Encodes one batch; see `Pipeline.embed`."""
        return self._graphs.run("full", {"pixels": pixels})["embedding"]


class SplitPipeline:
    """PRE, then for each location a selection on the host and the graph behind it; the last graph is POST."""

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self._prune = graphs.bundle.manifest.prune

    def open(self) -> Engine:
        """Loads every graph of the chain; see `Pipeline.open`."""
        for role in roles_after_selection(self._prune):
            self._graphs.engine(role)
        return self._graphs.engine("pre")

    def embed(self, pixels: Array, counts: tuple[int, ...]) -> Array:
        """Encodes one batch; see `Pipeline.embed`."""
        *_, last = self.stages(pixels, counts)
        return last.tensors["embedding"]

    def stages(self, pixels: Array, counts: tuple[int, ...]) -> Iterator[Stage]:
        """Runs one step each time the next stage is asked for, so that a caller may time or stop between them.

        Args:
            pixels: (batch, 3, height, width) float32.
            counts: patches kept at each location.
        """
        for name, tensors in split_steps(HostSteps(self._graphs), self._prune, pixels, counts):
            yield Stage(name, tensors)

    def scores(self, pixels: Array) -> Array:
        """(batch, patches) float32 scores at the first location, high = keep; only PRE runs."""
        return next(self.stages(pixels, self._prune_nothing())).tensors["scores"]

    def survivors(self, pixels: Array, counts: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], ...]:
        """The patches that survive each location: one (batch, k) int64 a location, by falling score there; POST does not run."""
        patches: npt.NDArray[np.int64] = np.arange(self._prune.patches)[None].repeat(len(pixels), axis=0)
        survivors: list[npt.NDArray[np.int64]] = []
        for stage in self.stages(pixels, counts):
            if "indices" in stage.tensors:
                patches = np.take_along_axis(patches, stage.tensors["indices"], axis=1)
                survivors.append(patches)
            if len(survivors) == len(counts):
                break
        return tuple(survivors)

    def _prune_nothing(self) -> tuple[int, ...]:
        return (self._prune.patches,) * len(self._prune.locations)


class PipelineKind(Protocol):
    """Makes a pipeline over one bundle's graphs."""

    def __call__(self, graphs: Graphs) -> Pipeline:
        """Opens nothing yet."""
        ...


MODES: Mapping[str, PipelineKind] = MappingProxyType({"fused": FusedPipeline, "split": SplitPipeline, "full": FullPipeline})
