"""The manifest reads back what it wrote, and refuses everything else by name."""

import copy
import json
from typing import Any

import pytest

from prtool.errors import BundleError, KeepError
from prtool.manifest import SCHEMA, ClassInfo, FileDigest, Manifest, ModelInfo, TextInfo
from prtool.signature import EncoderShape, graph_signatures
from prtool.spec import Cost, Keep, Preprocess, PruneSpec


def manifest() -> Manifest:
    prune, graphs = PruneSpec((4, 4), 12, (4, 6)), {}
    for precision in ("fp32", "int8"):
        graphs[precision] = graph_signatures(EncoderShape((32, 32), prune, 24, 512, 77), precision)
    names = ["classes.safetensors", "tokenizer.json", *(graph.file for roles in graphs.values() for graph in roles.values())]
    return Manifest(
        schema=SCHEMA,
        model=ModelInfo("ViT-B-16", "openai", "00" * 32, 512, 100.0, 0.0, "mix-mlp", scorer_trained=True),
        prune=prune,
        cost=Cost(1, 2, 3, 4),
        preprocess=Preprocess((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
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


def damaged(path: list[str | int], new: object) -> dict[str, Any]:
    value = copy.deepcopy(as_json())
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
        (["schema"], 1, "schema 1"),
        (["schema"], KeyError, "schema None"),
        (["model", "embed_dim"], "512", "manifest.model.embed_dim"),
        (["model", "embed_dim"], True, "manifest.model.embed_dim"),
        (["model", "scorer_trained"], 1, "manifest.model.scorer_trained"),
        (["model", "extra"], 1, "extra"),
        (["prune"], KeyError, "prune"),
        (["prune", "locations"], [6, 4], "must increase"),
        (["prune", "grid"], [4], "2 items"),
        (["keep_range"], [1, 2, 3], "2 items"),
        (["graphs"], [], "manifest.graphs"),
        (["graphs", "fp32", "full", "inputs", 0, "shape"], ["batch", 3.5], r"shape\[1\]"),
        (["text"], 5, "manifest.text"),
        (["preprocess", "resize_mode"], "fit", "resize mode"),
    ],
)
def test_damage_is_named(path: list[str | int], new: object, named: str) -> None:
    with pytest.raises(BundleError, match=named):
        Manifest.from_json(damaged(path, new))


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
