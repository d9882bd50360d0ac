"""Groups of ONNX nodes that PyTorch runs as one: attention, and a layer norm between casts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ATTENTION = "fused attention"
HALF_NORM = "fused layer norm in half precision"
_FLOAT, _HALVES = 1, (10, 16)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a graph; an absent input is the empty string."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


def fuse(nodes: Sequence[Node], outputs: Sequence[str], weights: Mapping[str, int], inputs: Mapping[str, int]) -> list[Node]:
    """The nodes in their order, with each group replaced by one node at the place of its last.

    `ATTENTION` takes queries, transposed keys, values and the mask that is added to the products ("" for none).
    `HALF_NORM` takes the half-precision tokens, scale and bias, and has the attributes `epsilon` and `to`. What feeds a
    group and nothing else any more is left for the caller to drop.

    Args:
        nodes: in an order in which they can run.
        outputs: names of the graph's outputs.
        weights, inputs: name of each initialiser and graph input -> its ONNX data type.
    """
    groups = _Groups(nodes, outputs, weights, inputs)
    return [groups.at(node) for node in nodes]


class _Groups:
    """Who makes and who uses each value, and its type."""

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[str], weights: Mapping[str, int], inputs: Mapping[str, int]) -> None:
        self.makers = {output: node for node in nodes for output in node.outputs}
        self.uses = Counter(name for node in nodes for name in node.inputs) + Counter(outputs)
        self.weights = weights
        self.types = {**weights, **inputs}
        for node in nodes:
            # Whatever computes with floats gives the type it takes; what gives integers is in no group.
            found = node.attributes["to"] if node.operator == "Cast" else self._type(node.inputs[0]) if node.inputs else 0
            self.types.update(dict.fromkeys(node.outputs, found))

    def at(self, node: Node) -> Node:
        """The group that ends in this node, as one node; the node itself where none does."""
        if node.operator == "MatMul":
            return self._attention(node) or node
        if node.operator == "Cast" and node.attributes["to"] in _HALVES:
            return self._half_norm(node) or node
        return node

    def _attention(self, last: Node) -> Node | None:
        """MatMul -> [Cast] -> [Add] -> [Cast] -> Softmax -> [Cast] -> MatMul, whose inner values nothing else uses."""
        softmax = self._maker_through_casts(last.inputs[0])
        if softmax is None or softmax.operator != "Softmax" or softmax.attributes.get("axis", -1) != -1:
            return None
        products, mask = self._maker_through_casts(softmax.inputs[0]), ""
        if products is not None and products.operator == "Add":
            products, mask = self._masked(products)
        if products is None or products.operator != "MatMul" or self._type(products.inputs[0]) != self._type(last.inputs[1]):
            return None
        return Node(ATTENTION, (*products.inputs, last.inputs[1], mask), last.outputs, {})

    def _masked(self, add: Node) -> tuple[Node | None, str]:
        """The products and the mask of an addition; a mask is a weight, so that a sum of two products is none."""
        for products, mask in (add.inputs, add.inputs[::-1]):
            maker = self._maker_through_casts(products)
            if maker is not None and maker.operator == "MatMul" and mask in self.weights:
                return maker, mask
        return None, ""

    def _half_norm(self, last: Node) -> Node | None:
        """Cast to float32 -> LayerNormalization -> Cast back: PyTorch's kernel adds up in float32 by itself."""
        norm = self._sole_maker(last.inputs[0], "LayerNormalization")
        if norm is None or len(norm.inputs) != 3 or not self.weights.keys() >= set(norm.inputs[1:]):
            return None
        entered = self.makers.get(norm.inputs[0])
        if entered is None or entered.operator != "Cast" or entered.attributes["to"] != _FLOAT:
            return None
        if self._type(entered.inputs[0]) != last.attributes["to"]:
            return None
        return Node(HALF_NORM, (entered.inputs[0], *norm.inputs[1:]), last.outputs, {**norm.attributes, "to": last.attributes["to"]})

    def _type(self, name: str) -> int:
        return self.types.get(name, 0)

    def _maker_through_casts(self, name: str) -> Node | None:
        node = self._sole_maker(name)
        while node is not None and node.operator == "Cast":
            node = self._sole_maker(node.inputs[0])
        return node

    def _sole_maker(self, name: str, operator: str | None = None) -> Node | None:
        """What makes a value that is used once; None where another node or the caller sees it too."""
        node = self.makers.get(name)
        if node is None or self.uses[name] != 1 or (operator is not None and node.operator != operator):
            return None
        return node
