"""int8 graphs out of float32 ones: NNCF chooses scales from the user's own images; scores and the head stay in float."""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import onnx_ir as ir

from prtool.engines.base import Array
from prtool.errors import ConfigError, EngineUnavailable, ModelError
from prtool.export.precision.regions import head, last_norm, scorer
from prtool.extras import install_hint

_PROTOBUF_BYTES = 2**31 - 2**20


@dataclass(frozen=True, slots=True)
class Int8Options:
    """How scales are chosen.

    Attributes:
        smooth: how much of the activations' spread moves into the weights before they are rounded (SmoothQuant's alpha, 0 to 1); -1 for none.
        fast_bias: correct the mean error of each layer from statistics alone; False takes NNCF's slower, layer-by-layer way.
    """

    smooth: float = 0.5
    fast_bias: bool = True

    def __post_init__(self) -> None:
        if not (self.smooth == -1 or 0.0 <= self.smooth <= 1.0):
            raise ConfigError(f"smooth = {self.smooth}, but it must be 0 to 1, or -1 for none")


def to_int8(model: ir.Model, samples: Sequence[Mapping[str, Array]], options: Int8Options | None = None) -> ir.Model:
    """A quantised copy of a float32 graph: QuantizeLinear and DequantizeLinear around products, 8-bit weights.

    Args:
        model: float32, with linear layers as MatMul and Add (three-dimensional): OpenVINO fuses the rounding into what comes before;
            behind a Reshape it becomes a pass over memory of its own (ViT-B/16: 490 ms against 406 ms for 8 images on two Zen 4 cores).
        samples: inputs of the graph, one call each, from real images.
        options: how scales are chosen.

    Raises:
        EngineUnavailable: NNCF is not installed.
        ModelError: the graph cannot be quantised, or its weights pass 2 GiB.
    """
    nncf = _library()
    chosen = options or Int8Options()
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if weights > _PROTOBUF_BYTES:
        raise ModelError(
            f"{model.graph.name} holds {weights / 2**30:.1f} GiB of weights, but int8 takes graphs up to 2 GiB; export fp16 or bf16 instead"
        )
    kept = [str(node.name) for node in (*scorer(model.graph), *head(model.graph), *last_norm(model.graph))]
    settings = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=chosen.smooth))
    with _quiet():
        try:
            made = nncf.quantize(
                ir.to_proto(model),
                nncf.Dataset(list(samples)),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(samples),
                fast_bias_correction=chosen.fast_bias,
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws bars and tells of each step on stdout; ours is for results."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
