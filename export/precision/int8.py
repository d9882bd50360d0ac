"""int8 graphs out of float32 ones: NNCF chooses scales from the user's own images; scores and the head stay in float32."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import onnx_ir as ir

from prtool.engines.base import Array
from prtool.errors import EngineUnavailable, ModelError
from prtool.export.graphs.onnx import quiet
from prtool.export.precision.regions import head, last_norm, scorer
from prtool.extras import install_hint

_PROTOBUF_BYTES = 2**31 - 2**20
# SmoothQuant's alpha: how much of the activations' range moves into the weights before they are quantised.
_SMOOTH = 0.5


def to_int8(model: ir.Model, samples: Sequence[Mapping[str, Array]]) -> ir.Model:
    """A quantised copy of a float32 graph: QuantizeLinear and DequantizeLinear around products, 8-bit weights.

    Args:
        model: float32, with linear layers as MatMul and Add (three-dimensional): OpenVINO fuses the rounding into the operator before it,
            but behind a Reshape it is a separate pass over memory (ViT-B/16: 490 ms instead of 406 ms for 8 images on two Zen 4 cores).
        samples: inputs of the graph, one call each, from real images.

    Raises:
        EngineUnavailable: NNCF is not installed.
        ModelError: the graph cannot be quantised, or its weights exceed 2 GiB.
    """
    nncf = _library()
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if weights > _PROTOBUF_BYTES:
        raise ModelError(
            f"{model.graph.name} holds {weights / 2**30:.1f} GiB of weights, but int8 takes graphs up to 2 GiB; export fp16 or bf16 instead"
        )
    kept = [str(node.name) for node in (*scorer(model.graph), *head(model.graph), *last_norm(model.graph))]
    settings = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTH))
    with quiet("nncf"):
        try:
            made = nncf.quantize(
                ir.to_proto(model),
                nncf.Dataset(list(samples)),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(samples),
                fast_bias_correction=True,
                ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
                advanced_parameters=settings,
            )
        except (RuntimeError, ValueError, KeyError, nncf.ValidationError, nncf.InternalError) as cause:
            raise ModelError(f"{model.graph.name} cannot be quantised: {type(cause).__name__}: {cause}; export fp16 or bf16 instead") from cause
    return cast(ir.Model, ir.from_proto(made))


def _library() -> Any:  # noqa: ANN401 - NNCF is loosely typed
    try:
        import nncf
    except ImportError as cause:
        raise EngineUnavailable(f"int8 needs NNCF, which cannot be imported ({cause}); {install_hint('int8')}") from cause
    return nncf
