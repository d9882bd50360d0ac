"""ONNX Runtime on the CPU: the embedded default engine; and what its GPU engines share with it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native  # pyright: ignore[reportAttributeAccessIssue] - compiled, no stubs

from prtool.cpus import granted_cpus
from prtool.engines.base import Array, EngineInfo, EngineOptions, check_file, check_inputs, check_signature, opened, reason
from prtool.errors import EngineError
from prtool.manifest import TensorSpec

_PROVIDER = "CPUExecutionProvider"
# ONNX Runtime writes what it raises to stderr as well; every error reaches the caller as an EngineError.
_FATAL_ONLY = 4
# Its exceptions have no common base; the built-in ones come from its binding (bad allocation, unusual status).
FAILURES: tuple[type[Exception], ...] = (
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
    MemoryError,
)


class OrtEngine:
    """One ONNX graph in an ONNX Runtime session on the CPU.

    `run` may be called from many threads at once: they share the session's thread pool. Outputs belong
    to the caller.
    """

    def __init__(self, model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions) -> None:
        """Loads `model_path`; see `EngineModule.open_graph`. `threads` and `spinning` of the options are used."""
        self._file = model_path
        self._inputs = tuple(inputs)
        self._threads = options.threads or granted_cpus()
        self._session: Any = self._open(options)
        check_signature(model_path, (item.name for item in self._session.get_inputs()), inputs)
        self._outputs = [item.name for item in self._session.get_outputs()]

    @property
    def info(self) -> EngineInfo:
        """ONNX Runtime's version and the number of CPU threads."""
        return EngineInfo("ort", onnxruntime.__version__, f"CPU, {self._threads} thread{'s' if self._threads > 1 else ''}")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph once; see `Engine.run`."""
        session = opened(self._session, self._file.name)
        check_inputs(self._inputs, inputs, self._file.name)
        feed = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        try:
            results = session.run(self._outputs, feed)
        except FAILURES as cause:
            raise self._failed(feed, cause) from cause
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Frees the session once calls that still run in other threads are done; a second call does nothing."""
        self._session = None

    def _open(self, options: EngineOptions) -> Any:  # noqa: ANN401 - onnxruntime has no types
        return open_session(self._file, session_settings(self._threads, options.spinning), [_PROVIDER])

    def _failed(self, feed: Mapping[str, Any], cause: Exception) -> EngineError:
        sizes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in feed.items())
        return EngineError(f"ONNX Runtime failed in {self._file} on {sizes}: {reason(cause)}")


def session_settings(threads: int, spinning: bool) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """What every session here has in common; it writes nothing to stdout or stderr."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    # Each session has its own pool, and one that spins on after its call takes the cores from the next session:
    # split mode took 1.12-1.15x the time of fused without this, 1.01-1.04x with it (ViT-B/16, 2 threads, batch 1 and 8).
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings


def open_session(model_path: Path, settings: Any, providers: Sequence[str | tuple[str, dict[str, str]]]) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """Loads a graph, or raises EngineError; ONNX Runtime may not exchange a provider that fails for another."""
    check_file(model_path)
    try:
        return onnxruntime.InferenceSession(os.fspath(model_path), settings, providers=list(providers), enable_fallback=0)
    except FAILURES as cause:
        raise EngineError(f"ONNX Runtime cannot load {model_path}: {reason(cause)}; copy or export the bundle again") from cause


def probe() -> EngineInfo:
    """What would run: this library's version, on the CPU with every granted thread."""
    return EngineInfo("ort", onnxruntime.__version__, f"CPU, {granted_cpus()} threads")


open_graph = OrtEngine
