"""Tiny seeded models for tests: ONNX graphs made in code, the bundle around them, and the same maths in plain numpy.

The blocks mix tokens by their mean instead of attention, so they stay small while a dropped token still
changes every other one.
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
from prtool.spec import Cost, Preprocess, PruneSpec

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
        locations: 1-based pruning locations; block i runs between location i - 1 and i.
        prefix_tokens, learnable_tokens: tokens that are always kept; the head reads the first one, so at least 1 prefix token.
    """

    locations: tuple[int, ...] = (2,)
    prefix_tokens: int = 1
    learnable_tokens: int = 0
    seed: int = 0
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
        object.__setattr__(self, "weights", {name: rng.standard_normal(shape).astype(np.float32) * 0.5 for name, shape in shapes.items()})

    @property
    def patches(self) -> int:
        """N."""
        return (SIDE // PATCH) ** 2

    @property
    def spec(self) -> PruneSpec:
        """The pruning specification of this model."""
        side = SIDE // PATCH
        return PruneSpec((side, side), len(self.locations) + 1, self.locations, self.prefix_tokens, self.learnable_tokens)

    def pixels(self, batch: int, seed: int = 1) -> F32:
        """(batch, 3, 8, 8) float32 noise."""
        return np.random.default_rng(seed).standard_normal((batch, 3, SIDE, SIDE)).astype(np.float32)

    def embed(self, pixels: F32, counts: tuple[int, ...]) -> F64:
        """The reference: one image at a time, plain loops for patches and selection, float64."""
        return np.stack([self._embed_one(image.astype(np.float64), counts) for image in pixels])

    def embed_full(self, pixels: F32) -> F64:
        """The reference of FULL: every patch, and no learnable token."""
        rows = []
        for image in pixels:
            tokens = self._tokens(image.astype(np.float64))[: self.prefix_tokens + self.patches]
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
        tokens = self._block(self._survivors(image, counts)[0], len(counts))
        return _normalised(tokens[0] @ self.weights["head"])

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

    def _tokens(self, image: F64) -> F64:
        side = SIDE // PATCH
        patches = [image[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] for y in range(side) for x in range(side)]
        embedded = np.stack([np.tensordot(self.weights["patch"], patch, axes=3) for patch in patches]) + self.weights["position"][0]
        return np.concatenate([self.weights["prefix"][0], embedded, self.weights["appended"][0]]).astype(np.float64)

    def _block(self, tokens: F64, block: int) -> F64:
        own, mix = self.weights[f"own_{block}"].astype(np.float64), self.weights[f"mix_{block}"].astype(np.float64)
        return np.asarray(tokens + np.tanh(tokens @ own + tokens.mean(axis=0) @ mix))

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
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def weight(self, name: str) -> str:
        """The name of one of the model's weights."""
        self.constants[name] = self.model.weights[name]
        return name

    def ints(self, *values: int) -> str:
        """The name of an int64 constant."""
        name = "ints_" + "_".join(str(value) for value in values)
        self.constants[name] = np.array(values, np.int64)
        return name

    def tokens(self, pixels: str) -> str:
        """Patch embedding, prefix and appended tokens."""
        maps = self.op("Conv", pixels, self.weight("patch"), strides=[PATCH, PATCH])
        rows = self.op("Transpose", self.op("Reshape", maps, self.ints(0, WIDTH, -1)), perm=[0, 2, 1])
        parts = [self.op("Add", rows, self.weight("position"))]
        batch = self.op("Concat", self.op("Shape", pixels, start=0, end=1), self.ints(1, 1), axis=0)
        if self.model.prefix_tokens:
            parts.insert(0, self.op("Expand", self.weight("prefix"), batch))
        if self.model.learnable_tokens:
            parts.append(self.op("Expand", self.weight("appended"), batch))
        return self.op("Concat", *parts, axis=1)

    def block(self, tokens: str, block: int) -> str:
        """One block."""
        own = self.op("MatMul", tokens, self.weight(f"own_{block}"))
        mean = self.op("ReduceMean", tokens, self.ints(1), keepdims=1)
        return self.op("Add", tokens, self.op("Tanh", self.op("Add", own, self.op("MatMul", mean, self.weight(f"mix_{block}")))))

    def part(self, tokens: str, start: int, end: int) -> str:
        """tokens[:, start:end]."""
        return self.op("Slice", tokens, self.ints(start), self.ints(end), self.ints(1))

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
    last = len(model.locations)
    maker = GraphMaker(model)
    tokens = maker.block(maker.tokens("pixels"), 0)
    entering = replace(TOKENS, shape=("batch", model.spec.always_kept + model.patches, WIDTH))
    scores = replace(SCORES, shape=("batch", model.patches))
    graphs = {"pre": maker.save(root / "pre.onnx", (PIXELS,), {tokens: entering, maker.scores(tokens, 0): scores})}
    for place in range(1, last):
        maker = GraphMaker(model)
        tokens = maker.block("tokens", place)
        outputs = {tokens: replace(TOKENS, name="tokens_out"), maker.scores(tokens, place): SCORES}
        graphs[f"mid_{place}"] = maker.save(root / f"mid_{place}.onnx", (TOKENS,), outputs)
    maker = GraphMaker(model)
    graphs["post"] = maker.save(root / "post.onnx", (TOKENS,), {maker.head(maker.block("tokens", last)): EMBEDDING})
    graphs["full"] = _whole(GraphMaker(model), root / "full.onnx", pruned=False)
    graphs["fused"] = _whole(GraphMaker(model), root / "fused.onnx", pruned=True)
    return graphs


def _whole(maker: GraphMaker, path: Path, pruned: bool) -> GraphSpec:
    last = len(maker.model.locations)
    embedded = maker.tokens("pixels")
    # The unpruned model has no learnable tokens either.
    tokens = maker.block(embedded if pruned else maker.part(embedded, 0, maker.model.prefix_tokens + maker.model.patches), 0)
    for place in range(last):
        if pruned:
            k = maker.op("Slice", "k", maker.ints(place), maker.ints(place + 1))
            tokens = maker.keep_best(tokens, maker.scores(tokens, place), k)
        tokens = maker.block(tokens, place + 1)
    inputs = (PIXELS, TensorSpec("k", "int64", (last,))) if pruned else (PIXELS,)
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
    """Writes a sealed bundle of `model` into `root`; keep range 2 to N, default 10.

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
    manifest = Manifest(
        schema=SCHEMA,
        model=ModelInfo("tiny", "random", "0" * 64, EMBED, LOGIT_SCALE, LOGIT_BIAS, "linear", scorer_trained=False),
        prune=model.spec,
        cost=Cost(100, 20, 3, 10, 5),
        preprocess=Preprocess((SIDE, SIDE), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        native_size=(SIDE, SIDE),
        default_keep=10,
        keep_range=(2, model.patches),
        graphs={"fp32": graphs},
        parity={},
        versions={},
        text=TextInfo(CONTEXT, VOCABULARY, "tokenizer.json") if text else None,
        classes=ClassInfo(classes, ("a photo of a {}.",), "classes.safetensors") if classes else None,
    )
    seal(root, manifest)
    return Bundle.open(root, verify=False)
