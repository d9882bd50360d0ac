"""Export a module to an ONNX graph with dynamic axes, without traces of the machine that made it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from torch import Tensor, nn

from prtool.errors import ModelError
from prtool.manifest import GraphSpec, TensorSpec

# Gelu is one operator from 20 on; TensorRT 10 and ONNX Runtime 1.17 read it.
OPSET = 20
_PRODUCER = "prtool"
_NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
# An example batch of 1 is built into the graph, and a count that is not prime can be taken for a multiple. Nothing is computed.
_EXAMPLE_SIZES = {"batch": 2, "tokens": 2003}


def to_onnx(module: nn.Module, spec: GraphSpec, least_tokens: int = 1) -> ir.Model:
    """Exports a module.

    Args:
        module: in evaluation mode, its forward takes `spec`'s inputs in their order.
        spec: names, dtypes and axes that the graph must have.
        least_tokens: the shortest sequence that comes in; the exporter must know it where the module cuts tokens off.

    Raises:
        ModelError: the exporter cannot follow the module, or it fixed an axis that must stay dynamic.
    """
    names = {axis for declared in spec.inputs for axis in declared.shape if isinstance(axis, str)}
    axes = {axis: torch.export.Dim(axis, min=max(least_tokens, 1) if axis == "tokens" else 1) for axis in sorted(names)}
    dynamic = [{place: axes[axis] for place, axis in enumerate(declared.shape) if isinstance(axis, str)} for declared in spec.inputs]
    with quiet(*_NOISY), torch.no_grad():
        try:
            program = torch.onnx.export(
                module.eval(),
                tuple(map(_example, spec.inputs)),
                dynamo=True,
                opset_version=OPSET,
                input_names=[declared.name for declared in spec.inputs],
                output_names=[output.name for output in spec.outputs],
                dynamic_shapes=tuple(dynamic),
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as cause:
            raise ModelError(f"{spec.file} cannot be exported: {_reason(cause)}; use another model, or report this one's name") from cause
    if program is None:
        raise ModelError(f"{spec.file} cannot be exported: the exporter gave no graph")
    check_axes(program.model, spec)
    return clean(program.model)


def clean(model: ir.Model) -> ir.Model:
    """Drops what no output needs, and every trace of source files; the same model, changed."""
    passes.RemoveUnusedNodesPass()(model)
    passes.DeduplicateInitializersPass()(model)
    # An inner value may bear an output's name ("embedding"); inputs and outputs keep theirs.
    passes.NameFixPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = _PRODUCER, None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    return model


def check_axes(model: ir.Model, spec: GraphSpec) -> None:
    """Compares inputs and outputs with their declaration; an axis that the exporter derived takes its declared name.

    Raises:
        ModelError: a name or an axis differs: a dynamic axis was fixed, or lost its name.
    """
    inputs = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    for kind, values, declared in (("input", model.graph.inputs, spec.inputs), ("output", model.graph.outputs, spec.outputs)):
        names = [value.name for value in values]
        if names != [tensor.name for tensor in declared]:
            raise ModelError(f"{spec.file} has the {kind}s {names}, but the bundle needs {[tensor.name for tensor in declared]}; use another model")
        for value, tensor in zip(values, declared, strict=True):
            found = _axes(value)
            if len(found) != len(tensor.shape) or not all(_agree(*axes, inputs) for axes in zip(found, tensor.shape, strict=True)):
                raise ModelError(f"{spec.file}: {kind} {tensor.name} has axes {found}, but the bundle needs {tensor.shape}; use another model")
            value.shape = ir.Shape(tensor.shape)


def _reason(error: BaseException) -> str:
    """The first line of the root cause; the exporter's own message is a page long."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"


def _agree(found: int | str | None, wanted: int | str, inputs: set[str]) -> bool:
    """Whether an axis is the declared one, or derived from the inputs' and only named otherwise."""
    return found == wanted or (isinstance(found, str) and isinstance(wanted, str) and wanted not in inputs)


def _axes(value: ir.Value) -> tuple[int | str | None, ...]:
    if value.shape is None:
        return ()
    return tuple(axis if isinstance(axis, int) else axis.value for axis in value.shape)


def _example(declared: TensorSpec) -> Tensor:
    shape = [_EXAMPLE_SIZES[axis] if isinstance(axis, str) else axis for axis in declared.shape]
    # Ones: a token id that every vocabulary has.
    return torch.ones(shape, dtype=getattr(torch, declared.dtype))


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Suppresses warnings and progress bars of a library, which name nothing that a user of prtool could change."""
    levels = [(logger, logger.level) for logger in map(logging.getLogger, loggers)]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
