"""Tiny seeded models for tests: ONNX graphs made in code, the bundle around them, and the same maths in plain numpy.

The blocks mix tokens by their mean instead of attention, so they stay small while a dropped token still
changes every other one. Tokens that merged count in that mean as often as they stand for a patch.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from prtool.bundle import Bundle, seal
from prtool.manifest import SCHEMA, ClassInfo, GraphSpec, Manifest, ModelInfo, TensorSpec, TextInfo
from prtool.spec import MERGE, RANK, Cost, Preprocess, PruneSpec

onnx = pytest.importorskip("onnx", reason="onnx makes the test graphs")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

SIDE, PATCH, WIDTH, EMBED, CONTEXT, VOCABULARY = 8, 2, 12, 6, 7, 11
WORDS = {"[PAD]": 0, "[UNK]": 1, "a": 2, "photo": 3, "of": 4, "cat": 5, "dog": 6, "car": 7}
LOGIT_SCALE, LOGIT_BIAS = 12.5, -0.25

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TinyModel:
    """An image tower with one block before each location and one behind the last, and its seeded weights.

    Attributes:
        locations: 1-based pruning locations; block i runs between location i - 1 and i. Where tokens merge, the blocks that they merge
            behind: (1, 2, ...). Of method "none", ().
        prefix_tokens, learnable_tokens: tokens that are always kept; the head reads the first one, so at least 1 prefix token.
        method: as `PruneSpec` has it.
        side: of the square images that the pruned tower reads, in pixels; the unpruned one reads `SIDE`.
    """

    locations: tuple[int, ...] = (2,)
    prefix_tokens: int = 1
    learnable_tokens: int = 0
    seed: int = 0
    method: str = RANK
    side: int = SIDE
    weights: dict[str, F32] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shapes: dict[str, tuple[int, ...]] = {
            "patch": (WIDTH, 3, PATCH, PATCH),
            "prefix": (1, self.prefix_tokens, WIDTH),
            "appended": (1, self.learnable_tokens, WIDTH),
            "position": (1, self.patches, WIDTH),
            "head": (WIDTH, EMBED),
            "vocabulary": (VOCABULARY, WIDTH),
            "text_head": (WIDTH, EMBED),
        }
        for block in range(len(self.locations) + 1):
            shapes |= {f"own_{block}": (WIDTH, WIDTH), f"mix_{block}": (WIDTH, WIDTH), f"score_{block}": (WIDTH, 1)}
        shapes["native_position"] = (1, (SIDE // PATCH) ** 2, WIDTH)
        weights = {name: rng.standard_normal(shape).astype(np.float32) * 0.5 for name, shape in shapes.items()}
        if self.side == SIDE:
            weights["native_position"] = weights["position"]
        object.__setattr__(self, "weights", weights)

    @property
    def patches(self) -> int:
        """N."""
        return (self.side // PATCH) ** 2

    @property
    def spec(self) -> PruneSpec:
        """The pruning specification of this model."""
        side = self.side // PATCH
        return PruneSpec((side, side), len(self.locations) + 1, self.locations, self.prefix_tokens, self.learnable_tokens, method=self.method)

    @property
    def cost(self) -> Cost:
        """Numbers of no meaning, as a tower of this size would have them."""
        native = {} if self.side == SIDE else {"native_tokens": self.prefix_tokens + (SIDE // PATCH) ** 2, "native_embed_macs": 178}
        merging = {"attention_token_macs": 8, "pair_macs": 2} if self.method == MERGE else {}
        return Cost(100, 20, 3, 10, 5, **native, **merging)

    def pixels(self, batch: int, seed: int = 1, *, side: int = 0) -> F32:
        """(batch, 3, side, side) float32 noise, at the size of the pruned tower unless another is given."""
        side = side or self.side
        return np.random.default_rng(seed).standard_normal((batch, 3, side, side)).astype(np.float32)

    def embed(self, pixels: F32, counts: tuple[int, ...]) -> F64:
        """The reference: one image at a time, plain loops for patches and selection, float64."""
        return np.stack([self._embed_one(image.astype(np.float64), counts) for image in pixels])

    def embed_full(self, pixels: F32) -> F64:
        """The reference of FULL, of images of `SIDE`: every patch, and no learnable token."""
        rows = []
        for image in pixels:
            embedded = self._tokens(image.astype(np.float64), "native_position")
            tokens = embedded[: len(embedded) - self.learnable_tokens]
            for block in range(len(self.locations) + 1):
                tokens = self._block(tokens, block)
            rows.append(_normalised(tokens[0] @ self.weights["head"]))
        return np.stack(rows)

    def scores(self, pixels: F32) -> F64:
        """(batch, patches) scores at the first location."""
        return np.stack([self._scores(self._block(self._tokens(image.astype(np.float64)), 0), 0) for image in pixels])

    def kept(self, image: F64, counts: tuple[int, ...]) -> list[int]:
        """The original indices of the patches that survive every location, by falling last score."""
        return self._survivors(image, counts)[1]

    def embed_text(self, tokens: npt.NDArray[np.int64]) -> F64:
        """(batch, context) ids -> (batch, E)."""
        words = self.weights["vocabulary"].astype(np.float64)[tokens].mean(axis=1)
        return _normalised(words @ self.weights["text_head"])

    def _embed_one(self, image: F64, counts: tuple[int, ...]) -> F64:
        if self.method == MERGE:
            tokens, sizes = self._merged(image, counts)
            return _normalised(self._block(tokens, len(counts), sizes)[0] @ self.weights["head"])
        tokens = self._block(self._survivors(image, counts)[0], len(counts))
        return _normalised(tokens[0] @ self.weights["head"])

    def _merged(self, image: F64, counts: tuple[int, ...]) -> tuple[F64, F64]:
        """Tokens behind every merging, and of how many patches each is the mean; docs/bundle-format.md, section 4."""
        tokens = self._tokens(image)
        sizes = np.ones(len(tokens))
        for place, k in enumerate(counts):
            tokens = self._block(tokens, place, sizes)
            places = [0, *range(self.prefix_tokens, len(tokens))]
            evens, odds, joining = places[::2], places[1::2], len(places) - 1 - k
            unit = [token / np.linalg.norm(token) for token in tokens]
            partners = {even: max(odds, key=lambda odd: (unit[even] @ unit[odd], -odd)) for even in evens}
            best = {even: unit[even] @ unit[partners[even]] if even else -np.inf for even in evens}
            order = sorted(evens, key=lambda even: (best[even], even))
            staying = sorted(order[: len(order) - joining])
            groups = [[even] for even in staying] + [[odd, *(even for even in order[len(staying) :] if partners[even] == odd)] for odd in odds]
            groups[1:1] = [[register] for register in range(1, self.prefix_tokens)]
            tokens = np.stack([np.average(tokens[group], axis=0, weights=sizes[group]) for group in groups])
            sizes = np.array([sizes[group].sum() for group in groups])
        return tokens, sizes

    def _survivors(self, image: F64, counts: tuple[int, ...]) -> tuple[F64, list[int]]:
        tokens, ids = self._tokens(image), list(range(self.patches))
        for place, k in enumerate(counts):
            tokens = self._block(tokens, place)
            scores = self._scores(tokens, place)
            best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
            end = len(tokens) - self.learnable_tokens
            tokens = np.stack([*tokens[: self.prefix_tokens], *(tokens[self.prefix_tokens + i] for i in best), *tokens[end:]])
            ids = [ids[i] for i in best]
        return tokens, ids

    def _tokens(self, image: F64, position: str = "position") -> F64:
        side = image.shape[1] // PATCH
        patches = [image[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] for y in range(side) for x in range(side)]
        embedded = np.stack([np.tensordot(self.weights["patch"], patch, axes=3) for patch in patches]) + self.weights[position][0]
        return np.concatenate([self.weights["prefix"][0], embedded, self.weights["appended"][0]]).astype(np.float64)

    def _block(self, tokens: F64, block: int, sizes: F64 | None = None) -> F64:
        own, mix = self.weights[f"own_{block}"].astype(np.float64), self.weights[f"mix_{block}"].astype(np.float64)
        return np.asarray(tokens + np.tanh(tokens @ own + np.average(tokens, axis=0, weights=sizes) @ mix))

    def _scores(self, tokens: F64, place: int) -> F64:
        end = len(tokens) - self.learnable_tokens
        scores: F64 = (tokens[self.prefix_tokens : end] @ self.weights[f"score_{place}"])[:, 0]
        return scores


def _normalised(rows: F64) -> F64:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


class GraphMaker:
    """Collects the nodes of one ONNX graph."""

    def __init__(self, model: TinyModel) -> None:
        self.model = model
        self.nodes: list[Any] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; returns its output's name."""
        return self.ops(1, kind, *inputs, **attributes)[0]

    def ops(self, outputs: int, kind: str, *inputs: str, **attributes: Any) -> list[str]:
        """Adds a node of several outputs; returns their names."""
        names = [f"{kind}_{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def weight(self, name: str) -> str:
        """The name of one of the model's weights."""
        self.constants[name] = self.model.weights[name]
        return name

    def ints(self, *values: int) -> str:
        """The name of an int64 constant."""
        name = "ints_" + "_".join(str(value) for value in values)
        self.constants[name] = np.array(values, np.int64)
        return name

    def floats(self, *values: float) -> str:
        """The name of a float32 constant."""
        name = "floats_" + "_".join(str(value) for value in values)
        self.constants[name] = np.array(values, np.float32)
        return name

    def tokens(self, pixels: str, position: str = "position") -> str:
        """Patch embedding, prefix and appended tokens."""
        maps = self.op("Conv", pixels, self.weight("patch"), strides=[PATCH, PATCH])
        rows = self.op("Transpose", self.op("Reshape", maps, self.ints(0, WIDTH, -1)), perm=[0, 2, 1])
        parts = [self.op("Add", rows, self.weight(position))]
        batch = self.op("Concat", self.op("Shape", pixels, start=0, end=1), self.ints(1, 1), axis=0)
        if self.model.prefix_tokens:
            parts.insert(0, self.op("Expand", self.weight("prefix"), batch))
        if self.model.learnable_tokens:
            parts.append(self.op("Expand", self.weight("appended"), batch))
        return self.op("Concat", *parts, axis=1)

    def block(self, tokens: str, block: int, sizes: str = "") -> str:
        """One block; `sizes` (batch, tokens, 1) weigh the tokens in their mean."""
        own = self.op("MatMul", tokens, self.weight(f"own_{block}"))
        mean = self.op("ReduceMean", tokens, self.ints(1), keepdims=1)
        if sizes:
            total = self.op("ReduceSum", self.op("Mul", tokens, sizes), self.ints(1), keepdims=1)
            mean = self.op("Div", total, self.op("ReduceSum", sizes, self.ints(1), keepdims=1))
        return self.op("Add", tokens, self.op("Tanh", self.op("Add", own, self.op("MatMul", mean, self.weight(f"mix_{block}")))))

    def part(self, tokens: str, start: int, end: int, step: int = 1) -> str:
        """tokens[:, start:end:step]."""
        return self.op("Slice", tokens, self.ints(start), self.ints(end), self.ints(1), self.ints(step))

    def patch_part(self, tokens: str) -> str:
        """The patch tokens."""
        return self.part(tokens, self.model.prefix_tokens, -self.model.learnable_tokens or 2**31)

    def scores(self, tokens: str, place: int) -> str:
        """(batch, patches)."""
        return self.op("Squeeze", self.op("MatMul", self.patch_part(tokens), self.weight(f"score_{place}")), self.ints(2))

    def keep_best(self, tokens: str, scores: str, k: str) -> str:
        """TopK and gather, as in a fused graph."""
        indices = f"indices_{len(self.nodes)}"
        self.nodes.append(helper.make_node("TopK", [scores, k], [f"values_{len(self.nodes)}", indices], axis=1, largest=1, sorted=1))
        parts = [self.op("GatherND", self.patch_part(tokens), self.op("Unsqueeze", indices, self.ints(2)), batch_dims=1)]
        if self.model.prefix_tokens:
            parts.insert(0, self.part(tokens, 0, self.model.prefix_tokens))
        if self.model.learnable_tokens:
            parts.append(self.part(tokens, -self.model.learnable_tokens, 2**31))
        return self.op("Concat", *parts, axis=1)

    def ones(self, tokens: str) -> str:
        """(batch, tokens, 1): before any merging a token stands for itself."""
        shape = self.op("Concat", self.op("Shape", tokens, start=0, end=2), self.ints(1), axis=0)
        return self.op("Expand", self.floats(1.0), shape)

    def merge(self, tokens: str, sizes: str, k: str) -> tuple[str, str]:
        """The tokens with k patches and how many each stands for, by one-hot matrices."""
        whole, weights = self._matched(tokens), self._matched(sizes)
        even, odd, even_weight, odd_weight = (self.part(item, start, 2**31, 2) for item in (whole, weights) for start in (0, 1))
        unit = [self.op("LpNormalization", item, axis=2, p=2) for item in (even, odd)]
        similar = self.op("MatMul", unit[0], self.op("Transpose", unit[1], perm=[0, 2, 1]))
        highest = self.op("Squeeze", self.ops(2, "TopK", similar, self.ints(1), axis=2)[0], self.ints(2))
        evens, odds = (self.op("Shape", item, start=1, end=2) for item in (even, odd))
        lowest = self.op("Mul", self.part(highest, 0, 1), self.floats(0.0))
        # The class token is less similar to anything than any two tokens are.
        best = self.op("Concat", self.op("Sub", lowest, self.floats(4.0)), self.part(highest, 1, 2**31), axis=1)
        order = self.ops(2, "TopK", best, evens, axis=1, largest=0)[1]
        stays = self.op("Sub", self.op("Add", k, self.ints(1)), odds)
        first = self.op("Cast", self.op("Slice", order, self.ints(0), stays, self.ints(1)), to=TensorProto.FLOAT)
        staying = self.op("Cast", self.ops(2, "TopK", first, stays, axis=1, largest=0)[0], to=TensorProto.INT64)
        stay = self._one_hot(staying, evens)
        moving = self.op("Sub", self.floats(1.0), self.op("ReduceSum", stay, self.ints(1), keepdims=0))
        joins = self.op("Mul", self._one_hot(self.op("ArgMax", similar, axis=2, keepdims=0), odds), self.op("Unsqueeze", moving, self.ints(2)))
        back = self.op("Transpose", joins, perm=[0, 2, 1])
        total = self.op("Add", odd_weight, self.op("MatMul", back, even_weight))
        joined = self.op("MatMul", back, self.op("Mul", even, even_weight))
        mean = self.op("Div", self.op("Add", self.op("Mul", odd, odd_weight), joined), total)
        merged = self.op("Concat", self.op("MatMul", stay, even), mean, axis=1)
        counted = self.op("Concat", self.op("MatMul", stay, even_weight), total, axis=1)
        return self._with_registers(merged, tokens), self._with_registers(counted, sizes)

    def _matched(self, tokens: str) -> str:
        if self.model.prefix_tokens == 1:
            return tokens
        return self.op("Concat", self.part(tokens, 0, 1), self.part(tokens, self.model.prefix_tokens, 2**31), axis=1)

    def _with_registers(self, merged: str, tokens: str) -> str:
        if self.model.prefix_tokens == 1:
            return merged
        return self.op("Concat", self.part(merged, 0, 1), self.part(tokens, 1, self.model.prefix_tokens), self.part(merged, 1, 2**31), axis=1)

    def _one_hot(self, places: str, size: str) -> str:
        """(batch, n) int64 places of a row of `size` -> (batch, n, size) float32."""
        numbers = self.op("Range", self.scalar(0), self.op("Squeeze", size, self.ints(0)), self.scalar(1))
        return self.op("Cast", self.op("Equal", self.op("Unsqueeze", places, self.ints(2)), numbers), to=TensorProto.FLOAT)

    def scalar(self, value: int) -> str:
        """The name of an int64 constant without axes."""
        self.constants[f"scalar_{value}"] = np.array(value, np.int64)
        return f"scalar_{value}"

    def head(self, tokens: str, weight: str = "head") -> str:
        """L2-normalised projection of the first token."""
        first = self.op("Squeeze", self.part(tokens, 0, 1), self.ints(1))
        return self.op("LpNormalization", self.op("MatMul", first, self.weight(weight)), axis=1, p=2)

    def save(self, path: Path, inputs: tuple[TensorSpec, ...], outputs: dict[str, TensorSpec]) -> GraphSpec:
        """Writes the graph; `outputs` maps a node output to its public name and signature."""
        nodes = [*self.nodes, *(helper.make_node("Identity", [inner], [spec.name]) for inner, spec in outputs.items())]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(nodes, path.stem, [_value(item) for item in inputs], [_value(item) for item in outputs.values()], constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(proto, full_check=True)
        path.write_bytes(proto.SerializeToString())
        return GraphSpec(path.name, inputs, tuple(outputs.values()))


def _value(spec: TensorSpec) -> Any:
    return helper.make_tensor_value_info(spec.name, {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}[spec.dtype], spec.shape)


PIXELS = TensorSpec("pixels", "float32", ("batch", 3, SIDE, SIDE))
TOKENS = TensorSpec("tokens", "float32", ("batch", "tokens", WIDTH))
SCORES = TensorSpec("scores", "float32", ("batch", "patches"))
EMBEDDING = TensorSpec("embedding", "float32", ("batch", EMBED))


def write_graphs(root: Path, model: TinyModel) -> dict[str, GraphSpec]:
    """Writes every image graph of a bundle into `root`; role -> graph."""
    graphs = _stages(root, model) if model.method == RANK else {}
    graphs["full"] = _full(GraphMaker(model), root / "full.onnx")
    graphs["fused"] = _fused(GraphMaker(model), root / "fused.onnx")
    return graphs


def _pixels(model: TinyModel) -> TensorSpec:
    return replace(PIXELS, shape=("batch", 3, model.side, model.side))


def _stages(root: Path, model: TinyModel) -> dict[str, GraphSpec]:
    last = len(model.locations)
    maker = GraphMaker(model)
    tokens = maker.block(maker.tokens("pixels"), 0)
    entering = replace(TOKENS, shape=("batch", model.spec.always_kept + model.patches, WIDTH))
    scores = replace(SCORES, shape=("batch", model.patches))
    graphs = {"pre": maker.save(root / "pre.onnx", (_pixels(model),), {tokens: entering, maker.scores(tokens, 0): scores})}
    for place in range(1, last):
        maker = GraphMaker(model)
        tokens = maker.block("tokens", place)
        outputs = {tokens: replace(TOKENS, name="tokens_out"), maker.scores(tokens, place): SCORES}
        graphs[f"mid_{place}"] = maker.save(root / f"mid_{place}.onnx", (TOKENS,), outputs)
    maker = GraphMaker(model)
    graphs["post"] = maker.save(root / "post.onnx", (TOKENS,), {maker.head(maker.block("tokens", last)): EMBEDDING})
    return graphs


def _full(maker: GraphMaker, path: Path) -> GraphSpec:
    # The unpruned model has no learnable tokens either.
    tokens = maker.part(maker.tokens("pixels", "native_position"), 0, maker.model.prefix_tokens + (SIDE // PATCH) ** 2)
    for block in range(len(maker.model.locations) + 1):
        tokens = maker.block(tokens, block)
    return maker.save(path, (PIXELS,), {maker.head(tokens): EMBEDDING})


def _fused(maker: GraphMaker, path: Path) -> GraphSpec:
    model, tokens, last = maker.model, maker.tokens("pixels"), len(maker.model.locations)
    sizes = maker.ones(tokens) if model.method == MERGE else ""
    tokens = maker.block(tokens, 0, sizes)
    for place in range(last):
        k = maker.op("Slice", "k", maker.ints(place), maker.ints(place + 1))
        if model.method == MERGE:
            tokens, sizes = maker.merge(tokens, sizes, k)
        else:
            tokens = maker.keep_best(tokens, maker.scores(tokens, place), k)
        tokens = maker.block(tokens, place + 1, sizes)
    inputs = (_pixels(model), TensorSpec("k", "int64", (last,))) if last else (_pixels(model),)
    return maker.save(path, inputs, {maker.head(tokens): EMBEDDING})


def write_text(root: Path, model: TinyModel) -> GraphSpec:
    """Writes the text graph: the mean of the token embeddings, projected and normalised."""
    maker = GraphMaker(model)
    words = maker.op("Gather", maker.weight("vocabulary"), "tokens", axis=0)
    mean = maker.op("ReduceMean", words, maker.ints(1), keepdims=0)
    embedding = maker.op("LpNormalization", maker.op("MatMul", mean, maker.weight("text_head")), axis=1, p=2)
    return maker.save(root / "text.onnx", (TensorSpec("tokens", "int64", ("batch", CONTEXT)),), {embedding: EMBEDDING})


def write_tokenizer(path: Path) -> None:
    """A whole-word tokenizer that pads with 0 and cuts to `CONTEXT`, as Hugging Face's tokenizer.json."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": number, "content": word} | plain for word, number in WORDS.items() if word.startswith("[")]
    content = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": CONTEXT, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": CONTEXT},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
    }
    path.write_text(json.dumps(content))


def class_embeddings(classes: int, seed: int = 2) -> F32:
    """(classes, E) float32, L2-normalised noise."""
    return _normalised(np.random.default_rng(seed).standard_normal((classes, EMBED))).astype(np.float32)


def tiny_bundle(root: Path, model: TinyModel, *, text: bool = True, classes: tuple[str, ...] = ("cat", "dog", "car")) -> Bundle:
    """Writes a sealed bundle of `model` into `root`; keep range 2 (or what merging can leave) to N, default 10 where that is inside.

    Args:
        root: a new or empty directory.
        model: the image and text towers.
        text: with text graph and tokenizer.
        classes: class names; none leaves the classes out.
    """
    root.mkdir(parents=True, exist_ok=True)
    graphs = write_graphs(root, model)
    if text:
        graphs["text"] = write_text(root, model)
        write_tokenizer(root / "tokenizer.json")
    if classes:
        save_file({"embeddings": class_embeddings(len(classes))}, root / "classes.safetensors")
    least = max(2, model.spec.least_keep)
    scorer = "linear" if model.method == RANK else ""
    manifest = Manifest(
        schema=SCHEMA,
        model=ModelInfo("tiny", "random", "0" * 64, EMBED, LOGIT_SCALE, LOGIT_BIAS, scorer, scorer_trained=False),
        prune=model.spec,
        cost=model.cost,
        preprocess=Preprocess((model.side, model.side), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        native_size=(SIDE, SIDE),
        default_keep=min(max(10, least), model.patches),
        keep_range=(least, model.patches),
        graphs={"fp32": graphs},
        parity={},
        versions={},
        text=TextInfo(CONTEXT, VOCABULARY, "tokenizer.json") if text else None,
        classes=ClassInfo(classes, ("a photo of a {}.",), "classes.safetensors") if classes else None,
    )
    seal(root, manifest)
    return Bundle.open(root, verify=False)
