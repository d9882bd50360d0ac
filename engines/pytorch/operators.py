"""The ONNX operators that the PyTorch engine knows, one function each, and the arithmetic on shapes, which stays in Python.

Sizes never become tensors: a number that came from a device would make each call wait for it, and no CUDA graph could hold it.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

Host = int | tuple[int, ...]
"""A value that is a size or a shape: a number, or a vector of numbers."""
Attributes = Mapping[str, Any]

_DTYPES: Mapping[int, torch.dtype] = MappingProxyType(
    {
        1: torch.float32,
        2: torch.uint8,
        3: torch.int8,
        5: torch.int16,
        6: torch.int32,
        7: torch.int64,
        9: torch.bool,
        10: torch.float16,
        11: torch.float64,
        16: torch.bfloat16,
    }
)


class UnsupportedOperator(Exception):
    """An operator, or a form of one, that is not in the table; the message says which."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One row of `OPERATORS`.

    Attributes:
        run: called with the node's tensors in order (None for an absent one), then `settings` of its attributes by name.
        settings: turns the node's attributes into keyword arguments of `run`; raises UnsupportedOperator for a form that is not known.
        host_inputs: places of inputs that are sizes, positions or axes; `run` is given Python numbers there.
    """

    run: Callable[..., Any]
    settings: Callable[[Attributes], dict[str, Any]] = field(default=lambda attributes: {})  # noqa: ARG005
    host_inputs: tuple[int, ...] = ()


def dtype_of(onnx_type: int) -> torch.dtype:
    """The torch dtype of an ONNX TensorProto data type."""
    found = _DTYPES.get(onnx_type)
    if found is None:
        raise UnsupportedOperator(f"data type {onnx_type}")
    return found


def _picked(**defaults: object) -> Callable[[Attributes], dict[str, Any]]:
    """Attributes of these names, with ONNX's defaults; all others are left out."""
    return lambda attributes: {name: attributes.get(name, default) for name, default in defaults.items()}


def _dim(default: int) -> Callable[[Attributes], dict[str, Any]]:
    """The attribute `axis`, by PyTorch's name."""
    return lambda attributes: {"dim": attributes.get("axis", default)}


def _needs(**wanted: object) -> Callable[[Attributes], dict[str, Any]]:
    """No keyword arguments, but UnsupportedOperator where an attribute has another value than `wanted`."""

    def check(attributes: Attributes) -> dict[str, Any]:
        for name, value in wanted.items():
            if attributes.get(name, value) != value:
                raise UnsupportedOperator(f"{name} = {attributes[name]}")
        return {}

    return check


# --- Tensors -----------------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, epsilon: float) -> Tensor:
    """LayerNormalization over the axes that `scale` has; the sums are float32 in every precision."""
    return functional.layer_norm(x, tuple(scale.shape), scale, bias, epsilon)


def attention(query: Tensor, key_transposed: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(query @ key_transposed + mask) @ value; the softmax is float32 inside in every precision."""
    fitted = None if mask is None else mask.to(query.dtype)
    return functional.scaled_dot_product_attention(query, key_transposed.transpose(-1, -2), value, attn_mask=fitted, scale=1.0)


def top_k(scores: Tensor, counts: tuple[int, ...], *, axis: int, largest: int = 1) -> tuple[Tensor, Tensor]:
    """Values and int64 indices of the largest, falling, or of the smallest, rising; of equal ones the lower index first.

    torch.topk does not promise that.
    """
    # -0.0 + 0.0 is 0.0, so the two zeros are equal to every sort.
    ordered = torch.sort(scores + 0.0, dim=axis, descending=bool(largest), stable=True)
    return ordered.values.narrow(axis, 0, counts[0]), ordered.indices.narrow(axis, 0, counts[0])


def patch_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution whose patches do not overlap, as one matrix product: (batch, C, H, W) -> (batch, out, H / h, W / w)."""
    out, channels, high, wide = weight.shape
    rows, columns = x.shape[2] // high, x.shape[3] // wide
    x = x[:, :, : rows * high, : columns * wide]
    patches = x.reshape(x.shape[0], channels, rows, high, columns, wide).permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, channels * high * wide)
    return functional.linear(patches, weight.reshape(out, -1), bias).transpose(1, 2).reshape(-1, out, rows, columns)


def _patch_only(attributes: Attributes) -> dict[str, Any]:
    stride, kernel = list(attributes.get("strides", [1, 1])), list(attributes.get("kernel_shape", []))
    if kernel != stride or len(stride) != 2:
        raise UnsupportedOperator(f"kernel {kernel or 'unknown'} with strides {stride}, but only patches that do not overlap are known")
    return _needs(group=1, auto_pad=b"NOTSET", pads=[0, 0, 0, 0], dilations=[1, 1])(attributes)


def gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float, beta: float, transA: int, transB: int) -> Tensor:  # noqa: PLR0913 - ONNX's
    """alpha a b + beta c."""
    if transB and not transA and alpha == beta == 1.0 and (c is None or c.dim() == 1):
        return functional.linear(a, b, c)
    product = alpha * torch.matmul(a.t() if transA else a, b.t() if transB else b)
    return product if c is None else product + beta * c


def _reshape(x: Tensor, shape: tuple[int, ...], *, allowzero: int) -> Tensor:
    if not allowzero:
        shape = tuple(x.shape[place] if size == 0 else size for place, size in enumerate(shape))
    return x.reshape(shape)


def _expand(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    # Untyped in torch.
    common = cast(tuple[int, ...], cast(Any, torch.broadcast_shapes)(tuple(x.shape), shape))
    return x.expand(common)


def _slice(
    x: Tensor, starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...] | None = None, steps: tuple[int, ...] | None = None
) -> Tensor:
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[place] if axes else place) % x.dim()
        x = x[(slice(None),) * axis + (slice(start, end, steps[place] if steps else 1),)]
    return x


def _pad(x: Tensor, pads: tuple[int, ...], value: Tensor | None = None) -> Tensor:
    """Places before and behind each axis, of one value."""
    for axis, (before, behind) in enumerate(zip(pads[: x.dim()], pads[x.dim() :], strict=True)):
        parts = [x.new_zeros((*x.shape[:axis], count, *x.shape[axis + 1 :])) for count in (before, behind)]
        if before or behind:
            x = torch.cat([parts[0] if value is None else parts[0] + value, x, parts[1] if value is None else parts[1] + value], dim=axis)
    return x


def _squeeze(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes)


def _unsqueeze(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _gather(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    return x[(slice(None),) * (axis % x.dim()) + (indices,)]


def gather_at(x: Tensor, index: Host, *, axis: int) -> Tensor:
    """Gather with an index that is known on the host: one slice, or several."""
    if isinstance(index, int):
        return x.select(axis, index)
    return torch.stack([x.select(axis, place) for place in index], dim=axis)


def _gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int) -> Tensor:
    leading = []
    for place in range(batch_dims):
        shape = [1] * (indices.dim() - 1)
        shape[place] = -1
        leading.append(torch.arange(x.shape[place], device=x.device).reshape(shape))
    return x[(*leading, *indices.unbind(-1))]


def _split(x: Tensor, sizes: tuple[int, ...] | None = None, *, axis: int, num_outputs: int) -> tuple[Tensor, ...]:
    if sizes is None:
        length = x.shape[axis]
        each = -(-length // num_outputs)
        sizes = (each,) * (num_outputs - 1) + (length - each * (num_outputs - 1),)
    return tuple(x.split_with_sizes(list(sizes), dim=axis))


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, axes: tuple[int, ...] | None = None, *, keepdims: int, noop_with_empty_axes: int) -> Tensor:
        if not axes and noop_with_empty_axes:
            return x
        return function(x, tuple(axes) if axes else tuple(range(x.dim())), keepdim=bool(keepdims))

    return run


def _l2(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(x, dim=axes, keepdim=keepdim))


def _l2_normalised(x: Tensor, *, axis: int) -> Tensor:
    return torch.div(x, _l2(x, (axis,), keepdim=True))


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _concat(*parts: Tensor, dim: int) -> Tensor:
    return torch.cat(parts, dim)


def _transpose(x: Tensor, *, perm: Sequence[int]) -> Tensor:
    return x.permute(list(perm) or list(range(x.dim()))[::-1])


def _identity(x: Any) -> Any:  # noqa: ANN401 - a tensor or a size
    return x


def _cast(x: Tensor, *, to: torch.dtype) -> Tensor:
    return x.to(to)


_REDUCTION = _picked(keepdims=1, noop_with_empty_axes=0)

_ALIKE = ("Abs", "Add", "Erf", "Exp", "Log", "MatMul", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh", "Where")
OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        **{name: Operator(getattr(torch, name.lower())) for name in _ALIKE},
        "And": Operator(torch.logical_and),
        "ArgMax": Operator(torch.argmax, lambda a: {**_needs(select_last_index=0)(a), **_dim(0)(a), "keepdim": bool(a.get("keepdims", 1))}),
        "Cast": Operator(_cast, lambda a: {"to": dtype_of(a["to"])}),
        "Clip": Operator(_clip),
        "Concat": Operator(_concat, _dim(0)),
        "Conv": Operator(patch_convolution, _patch_only),
        "CumSum": Operator(torch.cumsum, _needs(exclusive=0, reverse=0), (1,)),
        "Div": Operator(_divide),
        "Equal": Operator(torch.eq),
        "Expand": Operator(_expand, host_inputs=(1,)),
        "Gather": Operator(_gather, _picked(axis=0)),
        "GatherND": Operator(_gather_nd, _picked(batch_dims=0)),
        "Gelu": Operator(functional.gelu, lambda a: {"approximate": "tanh" if a.get("approximate") == b"tanh" else "none"}),
        "Gemm": Operator(gemm, _picked(alpha=1.0, beta=1.0, transA=0, transB=0)),
        "Greater": Operator(torch.gt),
        "Identity": Operator(_identity),
        "LayerNormalization": Operator(layer_norm, lambda a: _needs(stash_type=1, axis=-1)(a) or _picked(epsilon=1e-5)(a)),
        "Less": Operator(torch.lt),
        "LpNormalization": Operator(_l2_normalised, lambda a: _needs(p=2)(a) or _picked(axis=-1)(a)),
        "Max": Operator(torch.maximum),
        "Min": Operator(torch.minimum),
        "Not": Operator(torch.logical_not),
        "Pad": Operator(_pad, _needs(mode=b"constant"), (1,)),
        "ReduceL2": Operator(_reduce(_l2), _REDUCTION, (1,)),
        "ReduceMax": Operator(_reduce(torch.amax), _REDUCTION, (1,)),
        "ReduceMean": Operator(_reduce(torch.mean), _REDUCTION, (1,)),
        "ReduceSum": Operator(_reduce(torch.sum), _REDUCTION, (1,)),
        "Reshape": Operator(_reshape, _picked(allowzero=0), (1,)),
        "Slice": Operator(_slice, host_inputs=(1, 2, 3, 4)),
        "Softmax": Operator(functional.softmax, _dim(-1)),
        "Split": Operator(_split, _picked(axis=0, num_outputs=0), (1,)),
        "Squeeze": Operator(_squeeze, host_inputs=(1,)),
        "TopK": Operator(top_k, lambda a: _needs(sorted=1)(a) or _picked(axis=-1, largest=1)(a), (1,)),
        "Transpose": Operator(_transpose, _picked(perm=())),
        "Unsqueeze": Operator(_unsqueeze, host_inputs=(1,)),
    }
)
"""Operator name (opset 20) -> what runs."""


# --- Shapes ------------------------------------------------------------------------------------------------------------


def shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Host:
    """Shape: sizes start to end."""
    return tuple(x.shape[start:end])


def as_tensor(value: Host, device: torch.device) -> Tensor:
    """A shape as an int64 tensor, made on the device: a copy from the host could not be part of a CUDA graph."""
    if isinstance(value, tuple):
        return torch.stack([torch.full((), item, dtype=torch.int64, device=device) for item in value])
    return torch.full((), value, dtype=torch.int64, device=device)


def arange(start: int, limit: int, delta: int, *, device: torch.device) -> Tensor:
    """Range of sizes, as an int64 tensor on the device."""
    return torch.arange(start, limit, delta, device=device)


def _vector(value: Host) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _host_concat(*parts: Host) -> Host:
    return tuple(item for part in parts for item in _vector(part))


def _host_slice(value: Host, starts: tuple[int, ...], ends: tuple[int, ...], axes: object = None, steps: tuple[int, ...] | None = None) -> Host:  # noqa: ARG001
    return _vector(value)[starts[0] : ends[0] : steps[0] if steps else 1]


def _host_gather(value: Host, index: Host) -> Host:
    items = _vector(value)
    return items[index] if isinstance(index, int) else tuple(items[place] for place in index)


def _host_reshape(value: Host, shape: tuple[int, ...]) -> Host:
    return _vector(value) if shape else _vector(value)[0]


def _host_squeeze(value: Host, *_: object) -> Host:
    return _vector(value)[0]


def _host_unsqueeze(value: Host, *_: object) -> Host:
    return _vector(value)


def _pairwise(function: Callable[[int, int], int]) -> Callable[[Host, Host], Host]:
    def run(a: Host, b: Host) -> Host:
        if isinstance(a, int) and isinstance(b, int):
            return function(a, b)
        left, right = _vector(a), _vector(b)
        count = max(len(left), len(right))
        return tuple(function(x, y) for x, y in zip(left * (count // len(left)), right * (count // len(right)), strict=True))

    return run


def _host_reduce_prod(value: Host, *_: object, keepdims: int) -> Host:
    product = math.prod(_vector(value))
    return (product,) if keepdims else product


def _integers_only(attributes: Attributes) -> dict[str, Any]:
    if dtype_of(attributes["to"]).is_floating_point:
        raise UnsupportedOperator("of a size to a float")
    return {}


HOST_OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Add": Operator(_pairwise(operator.add)),
        "Cast": Operator(_identity, _integers_only),
        "Concat": Operator(_host_concat),
        "Div": Operator(_pairwise(operator.floordiv)),
        "Gather": Operator(_host_gather),
        "Identity": Operator(_identity),
        "Max": Operator(_pairwise(max)),
        "Min": Operator(_pairwise(min)),
        "Mul": Operator(_pairwise(operator.mul)),
        "ReduceProd": Operator(_host_reduce_prod, _picked(keepdims=1)),
        "Reshape": Operator(_host_reshape),
        "Slice": Operator(_host_slice),
        "Squeeze": Operator(_host_squeeze),
        "Sub": Operator(_pairwise(operator.sub)),
        "Unsqueeze": Operator(_host_unsqueeze),
    }
)
"""The same names where every input is a size or a shape."""
