"""OpenVINO on the CPU: float32, bfloat16 as an arithmetic of the float32 graphs, and int8 graphs."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from prtool.cpus import granted_cpus
from prtool.engines.base import Array, EngineInfo, GraphOptions, check_inputs, opened
from prtool.engines.ov.graph import DEVICE, FAILURES, OvGraph, Requests, core, fixed_sizes, matching, message_of, version
from prtool.engines.profiles import call_sizes
from prtool.errors import ConfigError, EngineError, EngineUnavailable
from prtool.manifest import TensorSpec

# An int8 graph says itself what is quantised; the rest of it stays in float32.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_BATCH = "batch"


class OvEngine:
    """One ONNX graph, compiled by OpenVINO for the CPU.

    Where a profile of the options holds a single size of an axis (or a single k), the graph is compiled once
    for each such combination and other sizes are rejected; every other axis takes any size. A count fixed in a
    profile is built in only where the graph takes one count (one pruning location).

    `run` may be called from many threads at once. Outputs belong to the caller.
    """

    def __init__(self, model_path: Path, inputs: Sequence[TensorSpec], options: GraphOptions) -> None:
        """Reads and compiles `model_path`; see `EngineModule.open_graph`. `precision`, `threads`, `streams` and `profiles` are used.

        OpenVINO lowers `threads` to the CPUs that the process may use; `info` has the number.
        """
        self._file = model_path
        self._inputs = tuple(inputs)
        self._streams = options.streams
        self._fixed = fixed_sizes(inputs, options.profiles)
        self._graph: OvGraph | None = OvGraph(model_path, inputs, _settings(options))
        fixed = self._fixed[0] if self._fixed else {}
        largest_part = -(-fixed.get(_BATCH, 0) // options.streams)
        self._info = _info(self._graph.compiled(_sized(fixed, largest_part)), options)

    @property
    def info(self) -> EngineInfo:
        """OpenVINO's version, and the processor with the threads and streams that really run."""
        return self._info

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph once, its batch cut into as many parts as there are streams; see `Engine.run`.

        A size other than those compiled for is a ShapeError as well.
        """
        graph = opened(self._graph, self._file.name)
        check_inputs(self._inputs, inputs, self._file.name)
        fixed = matching(self._fixed, self._inputs, inputs, self._file.name)
        parts = self._cut({name: np.ascontiguousarray(array) for name, array in inputs.items()})
        models = [graph.compiled(_sized(fixed, call_sizes(self._inputs, part).get(_BATCH, (0,))[0])) for part in parts]
        try:
            return _run_parts(models, parts)
        except FAILURES as cause:
            sizes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise EngineError(f"OpenVINO failed in {self._file} on {sizes}: {message_of(cause)}") from cause

    def close(self) -> None:
        """Frees the compiled graph once calls that still run in other threads are done; a second call does nothing."""
        self._graph = None

    def _cut(self, feed: dict[str, Array]) -> list[dict[str, Array]]:
        """Nearly equal parts of the batch, at most one per stream; inputs without a batch axis go whole to each."""
        batched = {spec.name for spec in self._inputs if spec.shape[:1] == (_BATCH,)}
        count = min([self._streams, *(len(feed[name]) for name in batched)]) if batched else 1
        if count == 1:
            return [feed]
        cut = {name: np.array_split(array, count) if name in batched else [array] * count for name, array in feed.items()}
        return [{name: pieces[place] for name, pieces in cut.items()} for place in range(count)]


def probe() -> EngineInfo:
    """What would run: this library's version, on the CPU with every granted thread."""
    return EngineInfo("openvino", version(), f"{_cpu_name()}, {granted_cpus()} threads")


open_graph = OvEngine


def _settings(options: GraphOptions) -> dict[str, object]:
    threads = options.threads or granted_cpus()
    if options.streams > threads:
        raise ConfigError(f"streams = {options.streams}, but each needs a thread and there are {threads}; give at most {threads}, or more threads")
    if options.precision not in _HINTS:
        raise ConfigError(f"precision = {options.precision!r}, but OpenVINO on a CPU computes in {', '.join(_HINTS)}")
    able = core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if options.precision == "bf16" and "BF16" not in able:
        raise EngineUnavailable(
            f"precision = bf16, but {_cpu_name()} computes in {', '.join(able)} only (bf16 needs AVX512_BF16 or AMX); use fp32 or int8"
        )
    return {
        # Left to itself, OpenVINO takes bf16 on every processor that has it.
        "INFERENCE_PRECISION_HINT": _HINTS[options.precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": options.streams,
        # The number of threads is the caller's; without this it is lowered to the physical cores.
        "ENABLE_HYPER_THREADING": True,
        # Every process that pins starts at the same cores: engines that share a machine would share those and leave others idle.
        "ENABLE_CPU_PINNING": threads == os.cpu_count(),
    }


def _info(requests: Requests, options: GraphOptions) -> EngineInfo:
    ran = requests.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if ran != _HINTS[options.precision]:
        raise EngineError(
            f"OpenVINO compiled for {ran}, but {options.precision} was asked for; report this with the processor's name ({_cpu_name()})"
        )
    threads = int(requests.compiled.get_property("INFERENCE_NUM_THREADS"))
    device = f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    return EngineInfo("openvino", version(), device if options.streams == 1 else f"{device} in {options.streams} streams")


def _cpu_name() -> str:
    return str(core().get_property(DEVICE, "FULL_DEVICE_NAME")).strip()


def _sized(fixed: Mapping[str, int], batch: int) -> Mapping[str, int]:
    return {**fixed, _BATCH: batch} if _BATCH in fixed else fixed


def _run_parts(models: Sequence[Requests], parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Runs the parts side by side and joins their outputs, which are copies."""
    with ExitStack() as stack:
        requests = [stack.enter_context(model.take()) for model in models]
        # Each one that was started is waited for, also when another fails: they read the caller's arrays. A single one is started in the
        # same way: with one thread, OpenVINO's `infer` loses the error of a call that fails, and its outputs are those of the call before.
        with ExitStack() as running:
            for request, model, part in zip(requests, models, parts, strict=True):
                request.start_async({name: part[name] for name in model.inputs}, share_inputs=True)
                running.callback(request.wait)
        outputs = {name: [request.get_output_tensor(place).data for request in requests] for place, name in enumerate(models[0].outputs)}
        return {name: np.concatenate(arrays) if len(arrays) > 1 else np.array(arrays[0]) for name, arrays in outputs.items()}
