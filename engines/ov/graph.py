"""From an ONNX file to compiled OpenVINO models: read, ordered as everywhere else among equal scores, and with axes fixed where that is asked."""

import functools
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import frontend

from prtool.engines.base import Array, Profile, check_file, check_signature, reason
from prtool.engines.forks import track
from prtool.engines.profiles import call_sizes
from prtool.errors import EngineError, EngineUnavailable, KeepError, ShapeError
from prtool.manifest import TensorSpec

DEVICE = "CPU"
Fixed = Mapping[str, int]
"""Sizes that a compiled model is made for: name of an axis, or of an input that is itself a shape -> size or value."""
_OUTPUT_SUFFIX = "/sink_port_0"
_FIXED = "prtool_fixed_count"
# What a count passes on its way to TopK unchanged.
_FORMS = ("Convert", "Gather", "Reshape", "Slice", "Squeeze", "StridedSlice", "Unsqueeze")

# The runtime raises the built-in errors, the reader of ONNX files its own, which have no common base.
FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
    frontend.GeneralFailure,
    frontend.InitializationFailure,
    frontend.NotImplementedFailure,
    frontend.OpConversionFailure,
    frontend.OpValidationFailure,
)


class Requests:
    """One compiled model and the requests that run it, each by one thread at a time."""

    def __init__(self, compiled: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:  # noqa: ANN401 - openvino has no types
        self.compiled = compiled
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._idle: deque[Any] = deque()

    @contextmanager
    def take(self) -> Iterator[Any]:
        """A request of one's own. One that fails is not used again: what it holds is unknown."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        yield request
        self._idle.append(request)


class OvGraph:
    """One ONNX graph, compiled as it stands, or once for each combination of fixed sizes that is run; safe from many threads."""

    def __init__(self, model_path: Path, inputs: Sequence[TensorSpec], settings: Mapping[str, object]) -> None:
        """Reads the file; compiles nothing yet. `settings` are OpenVINO's properties of a compiled model; raises EngineError."""
        self._file = model_path
        self._inputs = tuple(inputs)
        self._settings = dict(settings)
        self._model = read(model_path)
        self._compiled: dict[tuple[tuple[str, int], ...], Requests] = {}
        self._lock = threading.Lock()
        # A tensor can have several names once a graph is simplified; its node keeps the file's.
        check_signature(model_path, (item.get_node().get_friendly_name() for item in self._model.inputs), inputs)
        self._outputs = [item.get_node().get_friendly_name().removesuffix(_OUTPUT_SUFFIX) for item in self._model.outputs]

    def compiled(self, fixed: Fixed) -> Requests:
        """The model for these sizes; the first call with them compiles. Raises KeepError for more patches than the graph has, else EngineError."""
        key = tuple(sorted(fixed.items()))
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._compile(fixed)
            return self._compiled[key]

    def _compile(self, fixed: Fixed) -> Requests:
        try:
            model = _with_fixed(self._model, self._inputs, fixed) if fixed else self._model
            names = [spec.name for spec in self._inputs if not _built_in(spec, fixed)]
            return Requests(core().compile_model(model, DEVICE, self._settings), names, self._outputs)
        except KeepError:  # which is a ValueError, but one that is ours
            raise
        except FAILURES as cause:
            sizes = ", ".join(f"{name} = {size}" for name, size in fixed.items())
            raise EngineError(f"OpenVINO cannot compile {self._file}{' for ' if sizes else ''}{sizes}: {message_of(cause)}") from cause


@functools.cache
def core() -> Any:  # noqa: ANN401 - openvino has no types
    """OpenVINO's entry point, one for the process; raises EngineUnavailable where it has no CPU device."""
    made = openvino.Core()
    if DEVICE not in made.available_devices:
        raise EngineUnavailable(f"OpenVINO {version()} finds no CPU device, only {', '.join(made.available_devices) or 'none'}; reinstall openvino")
    track(made, "openvino")
    return made


def version() -> str:
    """OpenVINO's release, without the number of its build."""
    return str(openvino.__version__).split("-")[0]


def read(model_path: Path) -> Any:  # noqa: ANN401 - openvino has no types
    """The ONNX file as OpenVINO's model; raises EngineError where it is missing, damaged or holds operators that OpenVINO lacks."""
    check_file(model_path)
    try:
        # Straight to the ONNX reader: Core.read_model offers a damaged file to every reader, and some of them write to stderr.
        onnx = frontend.FrontEndManager().load_by_framework("onnx")
        model = onnx.convert(onnx.load(str(model_path)))
    except FAILURES as cause:
        raise EngineError(f"OpenVINO cannot load {model_path}: {message_of(cause)}; copy or export the bundle again") from cause
    if not model.outputs:
        raise EngineError(f"OpenVINO cannot load {model_path}: it holds no graph; copy or export the bundle again")
    _order_equals(model)
    _bound_indices(model)
    return model


def fixed_sizes(inputs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> tuple[Fixed, ...]:
    """What each profile fixes of this graph, () for nothing: every axis, and the value of an input of one element, whose range holds one size."""
    names = {axis for spec in inputs for axis in spec.shape if isinstance(axis, str)} | {spec.name for spec in inputs if _is_count(spec)}
    found: list[Fixed] = []
    for profile in profiles:
        fixed = {name: sizes.min for name, sizes in profile.items() if name in names and sizes.min == sizes.max}
        if fixed not in found:
            found.append(fixed)
    return () if found == [{}] else tuple(found)


def matching(combinations: Sequence[Fixed], inputs: Sequence[TensorSpec], arrays: Mapping[str, Array], graph: str) -> Fixed:
    """The first combination that these arrays fit; raises ShapeError where none does."""
    if not combinations:
        return {}
    sizes = {name: values[0] for name, values in call_sizes(inputs, arrays).items()}
    for fixed in combinations:
        if all(sizes[name] == size for name, size in fixed.items()):
            return fixed
    built = " or ".join(", ".join(f"{name} = {size}" for name, size in fixed.items()) for fixed in combinations)
    given = ", ".join(f"{name} = {sizes[name]}" for name in combinations[0])
    raise ShapeError(f"{graph} is compiled for {built}, but it was given {given}; build for these sizes too, or fix none to run every size")


def message_of(cause: BaseException) -> str:
    """OpenVINO's message in one line, without the places in its source."""
    lines = (line.strip() for line in str(cause).splitlines())
    kept = [line for line in lines if line and not line.startswith(("Exception from ", "FrontEnd API failed"))]
    return reason(RuntimeError("\n".join(kept))) if kept else type(cause).__name__


def _order_equals(model: Any) -> None:  # noqa: ANN401 - openvino has no types
    """Among equal scores the lower index comes first, as in ONNX; OpenVINO leaves the order open otherwise."""
    for node in model.get_ops():
        if node.get_type_name() == "TopK":
            node.set_attribute("stable", True)
    model.validate_nodes_and_infer_types()


def _bound_indices(model: Any) -> None:  # noqa: ANN401 - openvino has no types
    """Keeps the indices of every GatherND inside its data: OpenVINO does not check them, so a hostile graph could read the process's memory."""
    make = openvino.opset13
    for node in model.get_ops():
        if node.get_type_name() != "GatherND":
            continue
        indices, first = node.input_value(1), node.get_attributes()["batch_dims"]
        depth = indices.get_partial_shape()[-1]
        if depth.is_dynamic:
            raise EngineError(f"{node.get_friendly_name()} takes indices of unknown depth; export the bundle again")
        kind = indices.get_element_type()
        axes = make.constant(np.arange(first, first + depth.get_length()), np.int64)
        sizes = make.gather(make.shape_of(node.input_value(0), kind), axes, make.constant(0, np.int64))
        inside = make.maximum(make.minimum(indices, make.subtract(sizes, make.constant(1, kind))), make.constant(0, kind))
        node.input(1).replace_source_output(inside.output(0))
    model.validate_nodes_and_infer_types()


def _is_fixed(node: Any) -> bool:  # noqa: ANN401 - openvino has no types
    """Whether a node is a count that is built in, or only another form of it."""
    while node.get_type_name() in _FORMS:
        node = node.input_value(0).get_node()
    return bool(node.get_friendly_name() == _FIXED)


def _is_count(spec: TensorSpec) -> bool:
    """Whether an input is itself a size: how many patches to keep."""
    return spec.shape == (1,)


def _built_in(spec: TensorSpec, fixed: Fixed) -> bool:
    return _is_count(spec) and spec.name in fixed


def _with_fixed(model: Any, inputs: Sequence[TensorSpec], fixed: Fixed) -> Any:  # noqa: ANN401 - openvino has no types
    """A copy of the model with these sizes built in; an input whose value is fixed is no input of it."""
    copied = model.clone()
    for spec in inputs:
        if _built_in(spec, fixed):
            parameter = copied.input(spec.name).get_node()
            constant = openvino.opset13.constant(np.array([fixed[spec.name]], spec.dtype))
            constant.set_friendly_name(_FIXED)
            parameter.output(0).replace(constant.output(0))
            copied.remove_parameter(parameter)
    free = [spec for spec in inputs if not _built_in(spec, fixed)]
    shapes = {spec.name: [fixed.get(axis, -1) if isinstance(axis, str) else axis for axis in spec.shape] for spec in free}
    copied.reshape({name: openvino.PartialShape(shape) for name, shape in shapes.items()})
    _check_counts(copied, [fixed[spec.name] for spec in inputs if _built_in(spec, fixed)])
    return copied


def _check_counts(model: Any, counts: Sequence[int]) -> None:  # noqa: ANN401 - openvino has no types
    """A count that is an input is checked when it runs; one that is built in gives an empty result in place of an error."""
    for node in model.get_ops() if counts else ():
        # Merging chooses other numbers of tokens, which it computes from the count.
        if node.get_type_name() == "TopK" and _is_fixed(node.input_value(1).get_node()):
            patches = node.input_value(0).get_partial_shape()[node.get_attributes()["axis"]]
            if patches.is_static and max(counts) > patches.get_length():
                raise KeepError(f"k = {max(counts)}, but the graph chooses among {patches.get_length()} patches; build for at most so many")
