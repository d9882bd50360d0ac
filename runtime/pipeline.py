"""From pixels to embeddings: a bundle's graphs, and the modes that run them on numpy arrays or on a device's."""

import functools
import os
import threading
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from prtool.bundle import Bundle
from prtool.engines.base import Array, DeviceArray, DeviceEngine, Engine, EngineOptions, GraphOptions, check_outputs
from prtool.engines.forks import check_process
from prtool.engines.profiles import profiles
from prtool.engines.registry import graph_precision, open_engine
from prtool.errors import ConfigError, EngineError, ShapeError
from prtool.graphs.signature import bundle_roles, stage_roles
from prtool.records import check_value
from prtool.runtime.recorder import Recorder
from prtool.runtime.select import gather, select
from prtool.spec import PruneSpec

Tensors = Mapping[str, DeviceArray]
Steps = Iterator[tuple[str, Tensors]]


class Graphs:
    """The engines of one bundle at one precision, each opened on first use; safe from many threads."""

    def __init__(self, bundle: Bundle, engine: str, precision: str, options: EngineOptions) -> None:
        """Opens nothing yet; raises ConfigError where the engine is unknown or does not support the precision."""
        self.bundle = bundle
        self._engine = engine
        self._precision = graph_precision(engine, precision)
        self._options = GraphOptions.of(options, precision, profiles(bundle.manifest, options.build))
        self._opened: dict[str, Engine] = {}
        self._closed = False
        self._pid = os.getpid()
        self._lock = threading.Lock()

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that opened the graphs, which can neither run nor free them."""
        return os.getpid() != self._pid

    def engine(self, role: str) -> Engine:
        """The engine of one role of the manifest ("pre", "fused", ...).

        Raises:
            ConfigError: the bundle has no such precision or role.
            EngineUnavailable: the engine's library is not installed.
            BundleError: the bundle changed since it was opened.
            EngineError: the graph cannot be loaded, `close` was called, or this process was forked since.
        """
        check_process(self._pid, f"the encoder of {self.bundle.path}")
        if (opened := self._opened.get(role)) is not None:
            return opened
        with self._lock:
            if self._closed:
                raise EngineError(f"the encoder of {self.bundle.path} is closed; load it again to use it")
            if role not in self._opened:
                graph = self.bundle.graph(role, self._precision)
                with self.bundle.unchanged(graph.file) as path:
                    self._opened[role] = open_engine(self._engine, path, graph.inputs, self._options)
            return self._opened[role]

    def run(self, role: str, inputs: Tensors, *, on_device: bool = False) -> dict[str, DeviceArray]:
        """Runs the graph of one role; the outputs have the declared names, dtypes and shapes.

        Args:
            role: as `engine` takes it.
            inputs: numpy arrays by name, or arrays on the engine's device.
            on_device: leave inputs and outputs on the device, and do not wait for it.

        Raises:
            ShapeError, EngineError: as `engine`, `Engine.run` and `check_outputs`; or the engine keeps no arrays on a device.
        """
        engine = self.engine(role)
        if not on_device:
            outputs = engine.run(inputs)
        elif isinstance(engine, DeviceEngine):
            outputs = engine.run_device(inputs)
        else:
            raise _no_device(engine.info.name)
        check_outputs(self.bundle.graph(role, self._precision), inputs, outputs)
        return outputs

    def close(self) -> None:
        """Closes every engine; `engine` and `run` fail afterwards. A second call does nothing, nor does one in a forked child."""
        if self.forked:
            return
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, {}
        for engine in opened.values():
            engine.close()


@dataclass(frozen=True, slots=True)
class Stage:
    """One finished step of the split mode: "pre", "select_1", "mid_1", "select_2", ..., "post".

    Its tensors are a graph's outputs, or "tokens" and "indices" of a selection; those on a device are copied to the host when read.
    """

    name: str
    tensors: Mapping[str, Array]


class Pipeline:
    """One mode over a bundle's graphs; safe from many threads.

    `arrays` is the library of the device's arrays, which stay there between two graphs; None where they are numpy's.
    """

    def __init__(self, graphs: Graphs, mode: str) -> None:
        """Opens every graph of the mode; raises as `mode_of` and `Graphs.engine`."""
        manifest = graphs.bundle.manifest
        self._graphs, self._mode, self._name, self.prune = graphs, mode_of(mode, manifest.prune), mode, manifest.prune
        self._size = manifest.preprocess_for(mode).size
        roles = self._mode.roles(self.prune)
        first, *_ = [graphs.engine(role) for role in roles]
        self.info, self._first_role = first.info, roles[0]
        self.arrays = first.arrays if isinstance(first, DeviceEngine) else None
        self.run: Callable[[str, Tensors], Tensors] = functools.partial(graphs.run, on_device=self.arrays is not None)
        self.select: Callable[[DeviceArray, int], DeviceArray] = select if self.arrays is None else self.arrays.select
        self.gather: Callable[[DeviceArray, DeviceArray, int, int], DeviceArray] = gather if self.arrays is None else self.arrays.gather
        self._recorder = None if self.arrays is None else Recorder(self.arrays, self._embedding)

    def embed(self, pixels: Array, counts: tuple[int, ...]) -> Array:
        """(batch, E) embeddings, L2-normalised, in the graph's dtype, of (batch, 3, height, width) float32 pixels; one count per location."""
        if self.arrays is not None:
            return self.arrays.to_host(self.embed_device(pixels, counts))
        embedding: Array = self._embedding(pixels, counts)
        return embedding

    def embed_device(self, pixels: object, counts: tuple[int, ...]) -> DeviceArray:
        """`embed` on the device, without waiting for it; see `Encoder.encode_device`."""
        if self.arrays is None or self._recorder is None:
            raise _no_device(self.info.name)
        # In each call, because a recording would still run after the graphs are closed.
        self._graphs.engine(self._first_role)
        return self._recorder(self.arrays.to_device(pixels), counts)

    def patch_tokens(self, pixels: Array, counts: tuple[int, ...]) -> dict[str, Array]:
        """The outputs of TOKENS, whatever the pipeline's mode; "indices" of every patch where nothing is dropped."""
        if self._graphs.bundle.manifest.patch_tokens is None:
            raise ConfigError(f"{self._graphs.bundle.path} gives no patch tokens; export the run again with --patch-tokens BLOCK (-2 for LLaVA)")
        given = pixels if self.arrays is None else self.arrays.to_device(pixels)
        outputs = self.run("tokens", _fused_inputs(given, counts))
        found = outputs if self.arrays is None else {name: self.arrays.to_host(array) for name, array in outputs.items()}
        everything = np.arange(self.prune.patches)[None].repeat(len(pixels), axis=0)
        return {"indices": everything, **found}

    def stages(self, pixels: Array, counts: tuple[int, ...]) -> Iterator[Stage]:
        """Runs the split mode, whatever the pipeline's own, one finished step for each `next`; the first includes the copy to the device."""
        arrays = self.arrays
        for name, tensors in _split(self, pixels if arrays is None else arrays.to_device(pixels), counts):
            if arrays is not None:
                arrays.synchronise()
            yield Stage(name, tensors if arrays is None else _OnHost(arrays.to_host, tensors))

    def close(self) -> None:
        """Frees recordings, once the device has finished with them, and graphs. A second call does nothing, nor one in a forked child."""
        if self._recorder is not None and not self._graphs.forked:
            self._recorder.clear()
        self._graphs.close()

    def _embedding(self, pixels: DeviceArray, counts: tuple[int, ...]) -> DeviceArray:
        found = tuple(pixels.shape[2:])
        # Every other axis is the graph's to check; this one depends on the mode.
        if pixels.ndim == 4 and found != self._size:
            height, width = self._size
            raise ShapeError(
                f"pixels have shape {tuple(pixels.shape)}, but mode {self._name!r} of this bundle reads images of {height} x {width} pixels; "
                "prepare them as `Encoder.preprocess` says"
            )
        tensors: Tensors = {}
        for _, tensors in self._mode.steps(self, pixels, counts):  # noqa: B007 - only the last one counts
            pass
        return tensors["embedding"]


@dataclass(frozen=True, slots=True)
class Mode:
    """One way from pixels to embeddings; a row of `MODES`.

    `roles` are its graphs, of which the first takes the pixels; `steps` yields the name and outputs of each, "embedding" the last.
    """

    roles: Callable[[PruneSpec], tuple[str, ...]]
    steps: Callable[[Pipeline, DeviceArray, tuple[int, ...]], Steps]
    prunes: bool = True


def _fused(pipeline: Pipeline, pixels: DeviceArray, counts: tuple[int, ...]) -> Steps:
    yield "fused", pipeline.run("fused", _fused_inputs(pixels, counts))


def _fused_inputs(pixels: DeviceArray, counts: tuple[int, ...]) -> Tensors:
    # A smaller image alone drops nothing anywhere, so its graph takes no counts.
    return {"pixels": pixels, "k": np.array(counts, np.int64)} if counts else {"pixels": pixels}


def _split(pipeline: Pipeline, pixels: DeviceArray, counts: tuple[int, ...]) -> Steps:
    prune = pipeline.prune
    outputs, carried = pipeline.run("pre", {"pixels": pixels}), "tokens"
    yield "pre", outputs
    for place, (role, k) in enumerate(zip(stage_roles(prune)[1:], counts, strict=True), start=1):
        indices = pipeline.select(outputs["scores"], k)
        tokens = pipeline.gather(outputs[carried], indices, prune.prefix_tokens, prune.learnable_tokens)
        yield f"select_{place}", {"tokens": tokens, "indices": indices}
        # A graph cannot have an output named like its input: a middle graph turns "tokens" into "tokens_out".
        outputs, carried = pipeline.run(role, {"tokens": tokens}), "tokens_out"
        yield role, outputs


def _full(pipeline: Pipeline, pixels: DeviceArray, counts: tuple[int, ...]) -> Steps:  # noqa: ARG001 - nothing is dropped
    yield "full", pipeline.run("full", {"pixels": pixels})


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "fused": Mode(lambda _: ("fused",), _fused),
        "split": Mode(lambda prune: tuple(stage_roles(prune)), _split),
        "full": Mode(lambda _: ("full",), _full, prunes=False),
    }
)


def mode_named(name: str) -> Mode:
    """The mode of that name; raises ConfigError where there is none."""
    check_value("mode", str(name), choices=tuple(MODES))
    return MODES[str(name)]


def modes_of(prune: PruneSpec) -> tuple[str, ...]:
    """The modes that a bundle has graphs for: "split" needs patches that are ranked."""
    return tuple(name for name, mode in MODES.items() if set(mode.roles(prune)) <= set(bundle_roles(prune)))


def mode_of(name: str, prune: PruneSpec) -> Mode:
    """The mode of that name; raises ConfigError where there is none, or bundles with this method of pruning have not its graphs."""
    found, known = mode_named(name), modes_of(prune)
    if name not in known:
        raise ConfigError(
            f"mode {name!r} (scores, kept patches and stages too) needs a bundle that ranks patches, but this one has prune method {prune.method!r}; "
            f"its modes are {', '.join(known)}"
        )
    return found


class _OnHost(UserDict[str, Array]):
    """Arrays on a device that are copied to the host when they are read."""

    def __init__(self, to_host: Callable[[DeviceArray], Array], tensors: Tensors) -> None:
        super().__init__(tensors)
        self._to_host = to_host

    def __getitem__(self, name: str) -> Array:
        return self._to_host(self.data[name])


def _no_device(engine: str) -> EngineError:
    return EngineError(
        f"engine {engine} keeps no arrays on a device; use encode_pixels, or load engine torch, trt or another that `prtool doctor` shows on a GPU"
    )
