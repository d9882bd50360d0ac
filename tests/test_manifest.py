"""The manifest reads back what it wrote, and refuses everything else by name."""

import json
from dataclasses import replace
from typing import Any

import pytest

from prtool.errors import BundleError, KeepError
from prtool.graphs.signature import EncoderShape, graph_signatures
from prtool.manifest import SCHEMA, ClassInfo, FileDigest, Manifest, ModelInfo, TextInfo
from prtool.spec import Cost, Keep, Preprocess, PruneSpec


def manifest() -> Manifest:
    prune, graphs = PruneSpec((4, 4), 12, (4, 6)), {}
    for precision in ("fp32", "int8"):
        graphs[precision] = graph_signatures(EncoderShape((32, 32), (32, 32), prune, 24, 512, 77), precision)
    names = ["classes.safetensors", "tokenizer.json", *(graph.file for roles in graphs.values() for graph in roles.values())]
    return Manifest(
        schema=SCHEMA,
        model=ModelInfo("ViT-B-16", "openai", "00" * 32, 512, 100.0, 0.0, "mix-mlp", scorer_trained=True),
        prune=prune,
        cost=Cost(1, 2, 3, 4),
        preprocess=Preprocess((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        native_size=(32, 32),
        default_keep=10,
        keep_range=(2, 16),
        graphs=graphs,
        parity={"cosine_min": 0.999999},
        versions={"torch": "2.15"},
        text=TextInfo(77, 49408, "tokenizer.json"),
        classes=ClassInfo(("cat", "dog"), ("a photo of a {}.",), "classes.safetensors"),
        files={name: FileDigest(3, "ab" * 32) for name in names},
    )


def as_json() -> dict[str, Any]:
    return json.loads(json.dumps(manifest().to_json()))


def test_round_trip() -> None:
    assert Manifest.from_json(as_json()) == manifest()


def test_whole_numbers_read_as_floats() -> None:
    value = as_json()
    value["model"]["logit_scale"] = 100
    assert Manifest.from_json(value) == manifest()


def damaged(path: list[str | int], new: object, base: dict[str, Any] | None = None) -> dict[str, Any]:
    value = json.loads(json.dumps(base or as_json()))
    target: Any = value
    for step in path[:-1]:
        target = target[step]
    if new is KeyError:
        del target[path[-1]]
    else:
        target[path[-1]] = new
    return value


@pytest.mark.parametrize(
    ("path", "new", "named"),
    [
        (["schema"], 2, "schema 2"),
        (["schema"], KeyError, "schema None"),
        (["model", "embed_dim"], "512", "manifest.model.embed_dim"),
        (["model", "embed_dim"], True, "manifest.model.embed_dim"),
        (["model", "scorer_trained"], 1, "manifest.model.scorer_trained"),
        (["model", "extra"], 1, "extra"),
        (["prune"], KeyError, "prune"),
        (["prune", "locations"], [6, 4], "locations"),
        (["prune", "grid"], [4], "2"),
        (["keep_range"], [1, 2, 3], "2"),
        (["graphs"], [], "manifest.graphs"),
        (["graphs", "fp32", "full", "inputs", 0, "shape"], ["batch", 3.5], r"shape\[1\]"),
        (["text"], 5, "manifest.text"),
        (["preprocess", "resize_mode"], "fit", "fit"),
        (["prune", "depth"], 10**12, "depth = 1000000000000"),
        (["prune", "depth"], 1001, "depth = 1001"),
        (["prune", "grid"], [10**5, 10**5], r"grid = \[100000, 100000\]"),
        (["prune", "grid"], [0, 4], r"grid = \[0, 4\]"),
        (["prune", "locations"], [1] * 10**6, "locations = .{1,200} "),
        (["prune", "prefix_tokens"], 4097, "4097"),
        (["prune", "learnable_tokens"], -1, "-1"),
        (["prune", "drop_ratios"], [0, 2**53], "drop_ratios"),
        (["preprocess", "size"], [-1, -1], r"image size = \[-1, -1\]"),
        (["preprocess", "size"], [32, 0], r"image size = \[32, 0\]"),
        (["preprocess", "size"], [10**6, 10**6], "image size"),
        (["preprocess", "size"], [8192, 4096], "16777216"),
        (["preprocess", "std"], [0.0, 0.5, 0.5], r"std = 0\.0"),
        (["preprocess", "std"], [0.5, 1e-45, 0.5], "std = 1e-45"),
        (["preprocess", "std"], [0.5, -0.5, 0.5], r"std = -0\.5"),
        (["preprocess", "mean"], [0.5, 0.5, 1e39], r"mean = 1e\+39"),
        (["preprocess", "fill"], 256, "fill = 256"),
        (["preprocess", "resize_ratio"], 0.9, "resize_ratio = 0.9"),
        (["preprocess", "resize_ratio"], 8.5, "resize_ratio = 8.5"),
        (["cost", "embed_macs"], -1, "embed_macs.*-1"),
        (["cost"], {"embed_macs": 0, "token_macs": 0, "attention_macs": 0, "head_macs": 0, "kv_token_macs": 9}, "cost"),
        (["model", "embed_dim"], 0, "embed_dim = 0"),
        (["model", "embed_dim"], 513, r"\[batch, 512\].*\[batch, 513\]"),
        (["model", "logit_scale"], float("inf"), "logit_scale"),
        (["model", "logit_bias"], float("nan"), "logit_bias"),
        (["model", "logit_bias"], 10**400, "logit_bias"),
        (["cost", "embed_macs"], 10**400, "embed_macs"),
        (["default_keep"], 17, "default_keep = 17"),
        (["default_keep"], 1, "default_keep = 1"),
        (["keep_range"], [0, 16], r"keep_range = \[0, 16\]"),
        (["keep_range"], [2, 17], r"keep_range = \[2, 17\]"),
        (["text", "context_length"], 65_537, "context_length = 65537"),
        (["text", "context_length"], 76, r"graphs\.fp32\.text\.inputs"),
        (["text"], None, "graphs.fp32"),
        (["text", "tokenizer"], "absent.json", "absent.json"),
        (["classes", "file"], "absent.safetensors", "absent.safetensors"),
        (["classes", "names"], [], "= 0"),
        (["files", "full.onnx", "size"], -1, "full.onnx.size = -1"),
        (["files", "tokenizer.json", "size"], (64 << 20) + 1, "67108865"),
        (["graphs", "fp32"], KeyError, "fp32"),
        (["graphs", "int8", "mid_1"], KeyError, "graphs.int8"),
        (["graphs", "fp32", "post", "inputs"], [], "post"),
        (["graphs", "fp32", "full", "inputs", 0, "dtype"], "nloat32", "pixels nloat32"),
        (["graphs", "fp32", "pre", "outputs", 0, "shape", 1], 18, r"tokens float32 \[batch, 18, 24\]"),
        (["graphs", "fp32", "full", "file"], "tokenizer.json", ".onnx"),
    ],
)
def test_damage_is_named(path: list[str | int], new: object, named: str) -> None:
    with pytest.raises(BundleError, match=named):
        Manifest.from_json(damaged(path, new))


def other_method(method: str, locations: tuple[int, ...], side: int = 24) -> dict[str, Any]:
    """The manifest of a bundle whose pruned encoder reads smaller images, of a method without graphs between selections."""
    prune = PruneSpec((side // 8, side // 8), 12, locations, method=method)
    graphs = {"fp32": graph_signatures(EncoderShape((side, side), (32, 32), prune, 0, 512, 77))}
    least = max(2, prune.least_keep)
    changes = {"prune": prune, "graphs": graphs, "keep_range": (least, prune.patches), "default_keep": prune.patches}
    cost, made = Cost(1, 2, 3, 4, native_tokens=17, native_embed_macs=2), manifest()
    preprocess, model = replace(made.preprocess, size=(side, side)), replace(made.model, scorer="", scorer_trained=False)
    return replace(made, **changes, cost=cost, preprocess=preprocess, model=model).to_json()


METHODS = {"merge": (4, 5, 6), "none": ()}


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_read_back(method: str) -> None:
    value = json.loads(json.dumps(other_method(method, METHODS[method])))
    found = Manifest.from_json(value)
    assert json.loads(json.dumps(found.to_json())) == value
    assert found.preprocess_for("full").size == (32, 32) and found.preprocess_for("fused").size == (24, 24)
    assert set(found.graphs["fp32"]) == {"fused", "full", "text"}
    assert [spec.name for spec in found.graphs["fp32"]["fused"].inputs] == (["pixels", "k"] if method == "merge" else ["pixels"])
    assert (found.patches_kept("full", ()), found.patches_kept("fused", (5, 4)), found.patches_kept("fused", ())) == (16, 4, 9)


@pytest.mark.parametrize(
    ("method", "path", "new", "named"),
    [
        ("merge", ["prune", "method"], "pool", r"'pool'.*rank, merge, none"),
        ("merge", ["prune", "method"], 3, "manifest.prune.method"),
        ("merge", ["prune", "method"], KeyError, "graphs.fp32"),
        ("merge", ["prune", "locations"], [], r"locations = \[\]"),
        ("merge", ["prune", "locations"], [4, 12], r"locations = \[4, 12\]"),
        ("merge", ["prune", "learnable_tokens"], 1, "1 learnable tokens.*'merge'"),
        ("merge", ["keep_range"], [1, 9], r"keep_range = \[1, 9\]"),
        ("merge", ["graphs", "fp32", "fused"], KeyError, "fused"),
        ("merge", ["graphs", "fp32", "fused", "inputs"], [{"name": "pixels", "dtype": "float32", "shape": ["batch", 3, 24, 24]}], r"k int64 \[3\]"),
        ("none", ["prune", "locations"], [4], r"locations = \[4\].*'none'"),
        ("none", ["prune", "learnable_tokens"], 1, "1 learnable tokens.*'none'"),
        ("none", ["keep_range"], [8, 9], r"keep_range = \[8, 9\]"),
        ("none", ["default_keep"], 8, "default_keep = 8"),
        ("none", ["graphs", "fp32", "full"], KeyError, "full"),
        ("none", ["native_size"], KeyError, "native_size"),
        ("none", ["native_size"], [32], "native_size"),
        ("none", ["native_size"], [24, 16], r"native_size = \[24, 16\].*\[24, 24\]"),
        ("none", ["native_size"], [0, 0], "= .0, 0."),
        ("none", ["native_size"], [40, 40], r"\[batch, 3, 32, 32\].*\[batch, 3, 40, 40\]"),
        ("none", ["cost", "native_tokens"], 10, r"native_tokens = 10.*at least 11"),
        ("none", ["cost", "native_tokens"], KeyError, r"native_tokens = 0.*at least 11"),
        ("none", ["cost", "pair_macs"], -1, "pair_macs = -1"),
    ],
)
def test_damage_of_other_methods_is_named(method: str, path: list[str | int], new: object, named: str) -> None:
    with pytest.raises(BundleError, match=named):
        Manifest.from_json(damaged(path, new, other_method(method, METHODS[method])))


RECOVERY = {"rank": 4, "first": 2, "scale": 0.5, "images": 40, "copies": 2, "keeps": [3, 5], "before": [0.9, 0.99], "after": [0.95, 0.99]}


def test_a_recovery_is_read_back() -> None:
    value = as_json() | {"recovery": RECOVERY}
    found = Manifest.from_json(value)
    assert found.recovery is not None and (found.recovery.keeps, found.recovery.after) == ((3, 5), (0.95, 0.99))
    assert json.loads(json.dumps(found.to_json()))["recovery"] == RECOVERY
    assert Manifest.from_json(as_json()).recovery is None


@pytest.mark.parametrize(
    ("name", "new", "named"),
    [
        ("rank", 0, "recovery.rank = 0"),
        ("first", "2", "recovery.first"),
        ("scale", None, "recovery.scale"),
        ("copies", -1, "recovery.copies = -1"),
        ("keeps", [], "recovery has 0 keeps"),
        ("keeps", [3], "recovery has 1 keeps, 2 cosines before"),
        ("after", KeyError, "recovery lacks after"),
        ("more", 1, "more"),
    ],
)
def test_damage_of_a_recovery_is_named(name: str, new: object, named: str) -> None:
    with pytest.raises(BundleError, match=named):
        Manifest.from_json(damaged(["recovery", name], new, as_json() | {"recovery": RECOVERY}))


def test_roles_of_stages_belong_to_ranking_alone() -> None:
    value = json.loads(json.dumps(other_method("merge", (4,))))
    value["graphs"]["fp32"]["pre"] = value["graphs"]["fp32"]["full"]
    with pytest.raises(BundleError, match=r"pre.*fused, full"):
        Manifest.from_json(value)
    value = as_json()
    value["cost"]["native_tokens"] = 17
    with pytest.raises(BundleError, match=r"native_tokens = 17.*\[32, 32\]"):
        Manifest.from_json(value)


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_other_json_is_refused(value: object) -> None:
    with pytest.raises(BundleError):
        Manifest.from_json(value)


def test_keep_is_held_to_the_range() -> None:
    made = manifest()
    assert made.resolve(None) == 10
    assert made.resolve(Keep.ratio(0.5)) == 8
    with pytest.raises(KeepError, match="2 to 16"):
        made.resolve(Keep.count(1))
