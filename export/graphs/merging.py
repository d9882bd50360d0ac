"""The graphs of an encoder that merges tokens: what PyTorch exports between two mergings, and the merging itself in ONNX operators.

No scatter and no loop: a similarity product, ArgMax and TopK choose the pairs; a one-hot matrix times the tokens that merge gives
the means; the logarithm of the sizes is added to the products of attention. The number of pairs follows from `k` at run time.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes
from torch import Tensor, nn

from prtool.export.graphs.attention import PlainAttention
from prtool.export.graphs.compose import Joined, input_value
from prtool.export.graphs.last_block import num_query_tokens, run_queries
from prtool.export.graphs.modules import ImageGraph, exportable, normalise, unpruned
from prtool.export.graphs.onnx import clean
from prtool.graphs.signature import BATCH, TOKENS, GraphSpec, TensorSpec, stage_roles
from prtool.spec import PruneSpec
from prtool.trainer.models.blocks import BlockSteps, block_steps
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.tower import VisionTower

_FLOAT, _INT64 = int(ir.DataType.FLOAT), int(ir.DataType.INT64)
_END = 2**62
_TINY = 1e-12
# Below every cosine: the class token stays.
_LOWEST = -4.0


class _Stage(nn.Module):
    """From the MLP of one block to the attention of another, or to the embedding."""

    def __init__(self, tower: VisionTower, first: int, last: int) -> None:
        super().__init__()
        self.tower, self._first, self._last = tower, first, last

    def forward(self, tokens: Tensor, bias: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """Tokens (batch, tokens, D) merged in block `first`, and the logarithms of their sizes (batch, tokens).

        Returns:
            Tokens behind the attention of block `last` and their metric (batch, tokens, head width); or the embedding (batch, E),
            L2-normalised, where `last` is behind the last block.
        """
        mask, depth = bias[:, None, None, :], self.tower.depth
        tokens = _steps(self.tower, self._first).transform(tokens)
        for block in range(self._first + 1, min(self._last, depth)):
            tokens = _steps(self.tower, block).transform(_attend(self.tower, block, tokens, mask)[0])
        if self._last <= depth:
            return _attend(self.tower, self._last, tokens, mask)
        return normalise(self.tower.head(run_queries(self.tower.blocks[-1], tokens, num_query_tokens(self.tower), mask)))


def merging_graphs(encoder: MergedEncoder, native: VisionTower, *, flat: bool = True) -> dict[str, nn.Module]:
    """The graphs between the mergings, by role, and FULL.

    Args:
        encoder: stays as it is.
        native: the unpruned tower.
        flat: as in `prtool.export.graphs.attention.FlatLinear`.

    Returns:
        "pre": pixels -> tokens (batch, prefix + N, D) behind the attention of the first location, metric (batch, prefix + N, head width);
        "mid_1", ...: tokens and the logarithms of their sizes -> the same of the next location; "post": -> (batch, E), L2-normalised;
        "full": pixels -> (batch, E), L2-normalised, of `native`.
    """
    copied, locations = exportable(encoder.tower, flat=flat), (*encoder.spec.locations, encoder.tower.depth + 1)
    whole = copied if native is encoder.tower else exportable(native, flat=flat)
    graphs: dict[str, nn.Module] = {
        "pre": ImageGraph(copied, lambda tower, pixels: _attend(tower, locations[0], tower.run_pre(pixels, locations[0]), None))
    }
    for place, role in enumerate(stage_roles(encoder.spec)[1:]):
        graphs[role] = _Stage(copied, locations[place], locations[place + 1])
    return {**graphs, "full": ImageGraph(whole, unpruned)}


def merging_specs(encoder: MergedEncoder) -> dict[str, GraphSpec]:
    """Inputs and outputs of the graphs between the mergings, by role; none of them is a file of a bundle."""
    tower = encoder.tower
    pixels = TensorSpec("pixels", "float32", (BATCH, 3, *tower.image_size))
    tokens = TensorSpec("tokens", "float32", (BATCH, TOKENS, tower.width))
    given = (tokens, TensorSpec("bias", "float32", (BATCH, TOKENS)))
    found = (replace(tokens, name="tokens_out"), TensorSpec("metric", "float32", (BATCH, TOKENS, tower.cost().pair_macs)))
    embedding = TensorSpec("embedding", "float32", (BATCH, tower.embed_dim))
    whole = encoder.spec.prefix_tokens + encoder.spec.patches
    entered = tuple(replace(tensor, shape=(BATCH, whole, tensor.shape[2])) for tensor in found)
    roles = stage_roles(encoder.spec)
    graphs = {role: GraphSpec(f"{role}.onnx", given, found) for role in roles[1:-1]}
    return {"pre": GraphSpec("pre.onnx", (pixels,), entered), **graphs, "post": GraphSpec("post.onnx", given, (embedding,))}


def merged(stages: Sequence[ir.Model], prune: PruneSpec, spec: GraphSpec) -> ir.Model:
    """FUSED: the stages, with a merging between each two.

    Args:
        stages: "pre", "mid_1", ..., "post" of `merging_graphs`, as ONNX; unchanged.
        prune: which tokens never merge.
        spec: inputs pixels and k, one count a location.
    """
    joined = Joined(stages[0], "merge")
    counts, width, sizes = input_value(spec, 1), _width(stages[0]), None
    for place, stage in enumerate(stages[1:], start=1):
        merging = Merging(joined, joined.count(counts, place, len(prune.locations)), prune.prefix_tokens, width)
        tokens, sizes = merging.apply(joined.outputs["tokens_out"], joined.outputs["metric"], sizes)
        joined.append(stage, f"stage_{place}", {"tokens": tokens, "bias": joined.add("Log", [sizes])})
    model = joined.model(spec, (*joined.inputs, counts))
    # Mergings ask for the same sizes and ranges again and again; at batch 1 each small operator counts.
    passes.CommonSubexpressionEliminationPass()(model)
    return clean(model)


class Merging:
    """One merging in ONNX operators; `prtool.trainer.models.merging.MergedEncoder.merge` is the same in PyTorch.

    Of the sequence of class token and patches, every second token from the first on is even, the others are odd. With E even and O odd
    ones and k patches left behind, s = k + 1 - O even tokens stay. No tensor is ever empty, also where no pair merges: the class token
    stays, and the tokens that merge are led by one that does not, with weight 0.
    """

    def __init__(self, joined: Joined, k: ir.Value, prefix: int, width: int) -> None:
        self._joined, self._add, self._k, self._prefix, self._width = joined, joined.add, k, prefix, width

    def apply(self, tokens: ir.Value, metric: ir.Value, sizes: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        """Tokens (batch, prefix + k, D) and their sizes (batch, prefix + k); sizes None is one patch each."""
        if sizes is None:
            shape = self._add("Shape", [tokens], {"start": 0, "end": 2})
            sizes = self._add("Expand", [self._floats([1.0]), shape])
        inside = [self._without_registers(value) for value in (tokens, metric, sizes)]
        merged, counted = self._merge(*inside)
        return self._with_registers(merged, tokens), self._with_registers(counted, sizes)

    def _merge(self, tokens: ir.Value, metric: ir.Value, sizes: ir.Value) -> tuple[ir.Value, ir.Value]:
        """A table of all tokens and, behind them, the means; then one gather of the rows that are left, in their new order.

        Whole tokens move twice, not once for each step of the mean: in int8 and bf16 that is half of the time of a merging.
        """
        best, partner, odds = self._match(metric)
        stays = self._add("Sub", [self._add("Add", [self._k, self._ints([1])]), odds])
        order = self._add("TopK", [best, self._size(best)], {"axis": 1, "largest": 0, "sorted": 1}, outputs=2, place=1)
        staying = self._rising(self._slice(order, self._ints([0]), stays), stays)
        merging = self._slice(order, self._add("Sub", [stays, self._ints([1])]), self._ints([_END]))
        joins = self._add("Gather", [self._flat(partner), self._rows(partner, merging)], {"axis": 0})
        means, totals = self._means(tokens, sizes, merging, joins)
        left = self._add("Concat", [self._twice(staying), self._odd_rows(joins, odds, self._size(tokens))], {"axis": 1})
        found = []
        for values, more, channels in ((tokens, means, [self._width]), (sizes, totals, [])):
            table = self._add("Concat", [values, more], {"axis": 1})
            found.append(self._add("Gather", [self._flat(table, *channels), self._rows(table, left)], {"axis": 0}))
        return found[0], found[1]

    def _means(self, tokens: ir.Value, sizes: ir.Value, merging: ir.Value, joins: ir.Value) -> tuple[ir.Value, ir.Value]:
        """For each token that merges, what its partner becomes (batch, r + 1, D), and the size of that (batch, r + 1)."""
        rows, partners = (self._rows(tokens, places) for places in (self._twice(merging), self._twice(joins, 1)))
        table, counted = self._flat(tokens, self._width), self._flat(sizes)
        weights = self._without_first(self._gathered(counted, rows), 0.0)
        joining = self._add("Mul", [self._alike(joins, joins), self._axis(weights, 1)])
        own = self._gathered(counted, partners)
        total = self._add("Add", [self._add("ReduceSum", [joining, self._ints([2])], {"keepdims": 0}), own])
        kept = self._add("Mul", [self._gathered(table, partners), self._axis(self._add("Div", [own, total]), 2)])
        shares = self._add("Div", [joining, self._axis(total, 2)])
        return self._add("Add", [kept, self._add("MatMul", [shares, self._gathered(table, rows)])]), total

    def _odd_rows(self, joins: ir.Value, odds: ir.Value, tokens: ir.Value) -> ir.Value:
        """For each odd token, its row in the table: its own, or that of a mean, which is behind all `tokens`."""
        numbers = self._axis(self._range(odds), 0)
        means = self._add("Cast", [self._add("Add", [self._range(self._size(joins)), tokens])], {"to": _FLOAT})
        changed = self._add("ReduceMax", [self._add("Mul", [self._alike(numbers, joins), means]), self._ints([2])], {"keepdims": 0})
        return self._add("Max", [self._add("Cast", [changed], {"to": _INT64}), self._twice(numbers, 1)])

    def _alike(self, rows: ir.Value, columns: ir.Value) -> ir.Value:
        """1.0 where two numbers are equal, else 0.0: (batch or 1, n), (batch, m) int64 -> (batch, n, m).

        Compared as floats: OpenVINO's fast kernels are for those.
        """
        first, second = (self._add("Cast", [numbers], {"to": _FLOAT}) for numbers in (rows, columns))
        return self._add("Cast", [self._add("Equal", [self._axis(first, 2), self._axis(second, 1)])], {"to": _FLOAT})

    def _twice(self, numbers: ir.Value, more: int = 0) -> ir.Value:
        """2 n + more: the place of even token number n, or with 1 of odd token number n."""
        doubled = self._add("Mul", [numbers, self._ints([2])])
        return self._add("Add", [doubled, self._ints([more])]) if more else doubled

    def _gathered(self, table: ir.Value, rows: ir.Value) -> ir.Value:
        return self._add("Gather", [table, rows], {"axis": 0})

    def _match(self, metric: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Each even token's highest cosine (batch, E) and the odd token that has it (batch, E) int64; and O, a vector of one."""
        length = self._add("Max", [self._add("ReduceL2", [metric, self._ints([-1])], {"keepdims": 1}), self._floats([_TINY])])
        unit = self._add("Div", [metric, length])
        odd = self._every_second(unit, 1)
        alike = self._add("MatMul", [self._every_second(unit, 0), self._add("Transpose", [odd], {"perm": [0, 2, 1]})])
        best = self._add("ReduceMax", [alike, self._ints([2])], {"keepdims": 0})
        partner = self._add("ArgMax", [alike], {"axis": 2, "keepdims": 0})
        return self._without_first(best, _LOWEST), partner, self._size(odd)

    def _rising(self, indices: ir.Value, count: ir.Value) -> ir.Value:
        """The same indices (batch, count) in rising order."""
        ordered = self._add("TopK", [self._add("Cast", [indices], {"to": _FLOAT}), count], {"axis": 1, "largest": 0, "sorted": 1}, outputs=2)
        return self._add("Cast", [ordered], {"to": _INT64})

    def _without_first(self, values: ir.Value, instead: float) -> ir.Value:
        """Values (batch, items) with another first one."""
        rest = self._slice(values, self._ints([1]), self._ints([_END]))
        return self._add("Pad", [rest, self._ints([0, 1, 0, 0]), self._floats(instead)])

    def _rows(self, table: ir.Value, places: ir.Value) -> ir.Value:
        """Places (batch, items) in each row of `table` (batch, tokens, ...) -> places in `_flat(table)`.

        A Gather of rows: OpenVINO copies the whole table for GatherND with a batch axis.
        """
        batch = self._add("Shape", [table], {"start": 0, "end": 1})
        first = self._add("Mul", [self._range(batch), self._size(table)])
        return self._add("Add", [places, self._axis(first, 1)])

    def _flat(self, table: ir.Value, *channels: int) -> ir.Value:
        return self._add("Reshape", [table, self._ints([-1, *channels])])

    def _without_registers(self, values: ir.Value) -> ir.Value:
        if self._prefix == 1:
            return values
        parts = [self._slice(values, self._ints([0]), self._ints([1])), self._slice(values, self._ints([self._prefix]), self._ints([_END]))]
        return self._add("Concat", parts, {"axis": 1})

    def _with_registers(self, values: ir.Value, old: ir.Value) -> ir.Value:
        if self._prefix == 1:
            return values
        zero, one, prefix, end = (self._ints([place]) for place in (0, 1, self._prefix, _END))
        parts = [self._slice(values, zero, one), self._slice(old, one, prefix), self._slice(values, one, end)]
        return self._add("Concat", parts, {"axis": 1})

    def _slice(self, values: ir.Value, start: ir.Value, end: ir.Value) -> ir.Value:
        return self._add("Slice", [values, start, end, self._ints([1])])

    def _every_second(self, values: ir.Value, first: int) -> ir.Value:
        return self._add("Slice", [values, self._ints([first]), self._ints([_END]), self._ints([1]), self._ints([2])])

    def _size(self, values: ir.Value) -> ir.Value:
        """The size of axis 1, a vector of one."""
        return self._add("Shape", [values], {"start": 1, "end": 2})

    def _range(self, end: ir.Value) -> ir.Value:
        """0, 1, ..., below a vector of one."""
        zero, one = (self._joined.constant(f"merge/scalar_{step}_{len(self._joined.weights)}", np.array(step, np.int64)) for step in (0, 1))
        return self._add("Range", [zero, self._add("Squeeze", [end]), one])

    def _axis(self, values: ir.Value, axis: int) -> ir.Value:
        return self._add("Unsqueeze", [values, self._ints([axis])])

    def _ints(self, values: list[int]) -> ir.Value:
        return self._joined.constant(f"merge/constant_{len(self._joined.weights)}", np.array(values, np.int64))

    def _floats(self, values: float | list[float]) -> ir.Value:
        return self._joined.constant(f"merge/constant_{len(self._joined.weights)}", np.array(values, np.float32))


def _width(stage: ir.Model) -> int:
    """D of the tokens that PRE gives."""
    shape = cast(ir.Shape, next(value for value in stage.graph.outputs if value.name == "tokens_out").shape)
    return cast(int, shape[-1])


def _steps(tower: VisionTower, block: int) -> BlockSteps:
    """The steps of a 1-based block of an exportable copy."""
    return cast(BlockSteps, block_steps(tower.blocks[block - 1]))


def _attend(tower: VisionTower, block: int, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The attention half of a 1-based block: tokens behind its residual, and their metric."""
    steps = _steps(tower, block)
    attended, metric = cast(PlainAttention, steps.attention).attend_with_metric(steps.norm_1(tokens), mask)
    return tokens + steps.scale_1(attended), metric
