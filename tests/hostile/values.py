"""Hostile values for JSON, names and sizes."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.sealing import read_manifest, reseal, write_sealed

NUMBERS = [
    *(0, 1, 2, -1, 3, 7, 16, 17, 255, 256, 1000, 1001, 1024, 1025, 4096, 4097, 8192, 8193, 10**4, 65536, 65537, 10**6, 2**31 - 1, 2**31),
    *(2**32, 10**10, 2**53, 2**53 + 1, 2**62, 2**63, 2**64, -(2**31), -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, -1.5, 1e-9, 1e-45, 1e-320, 1e9, 1e38, 1e300, 1.7e308, -1e308),
]
TEXTS = [
    *("", "a", "batch", "tokens", "float16", "float64", "nloat32", "object", "fp32", "int8", "x" * 255, "y" * 70_000),
    *("\x1b[31mred", "line\nbreak", "\ud800", "\u202ereversed", "\x00", "../outside/secret.data", "/etc/passwd", "full.onnx", "pre.onnx"),
]
FILE_NAMES = [
    *("../outside/secret.data", "../../secret", "/etc/passwd", "/dev/zero", "a/../../x", "./full.onnx", "a//b", "fp16/", "", ".", "..", "~/x"),
    *("C:\\x", "a\\..\\b", "con:", "nul\x00", "tab\tname", "new\nline", "\x1b[2J", "\x7f", "\ud800", "\udcff", "*", "?.onnx", "a|b", "prtool.json"),
    *("n" * 255, "n" * 256, "é" * 127, "é" * 128, "/".join(["d" * 200] * 5), "/".join(["d" * 200] * 6), "/".join("d" * 500), "x.onnx"),
    *("é.onnx", "\u202egnp.exe", "full.onnx ", "full.ONNX", "😀.onnx", "full.onnx.ort", "full.ort"),
]


def hostile_name(chance: random.Random, name: str) -> str:
    """Another name for the file `name`."""
    return chance.choice([*FILE_NAMES, f"../bundle/{name}", f"sub/{name}", f"./{name}", name.upper(), name + "\x00", name + "/"])


def change_json(value: dict[str, Any], chance: random.Random) -> str:
    """Changes one place of a value."""
    places = [place for place in _places(value) if place]
    path = chance.choice(places)
    parent: Any = value
    for step in path[:-1]:
        parent = parent[step]
    new = _other(parent[path[-1]], chance)
    if new is _DELETE:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return f"{'.'.join(map(str, path))} = {'deleted' if new is _DELETE else repr(new)[:80]}"


_DELETE = object()


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


def _other(old: Any, chance: random.Random) -> Any:
    choices: list[Callable[[], Any]] = [
        lambda: chance.choice(NUMBERS),
        lambda: chance.choice(TEXTS),
        lambda: chance.choice([None, True, False, [], {}, [[]], {"a": 1}]),
        lambda: _DELETE,
    ]
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        choices += [lambda: chance.choice(NUMBERS), lambda: old + 1, lambda: old - 1, lambda: old * 2, lambda: -old] * 2
    if isinstance(old, str):
        choices += [lambda: chance.choice(TEXTS), lambda: old + "x", lambda: old[:-1], old.upper]
    if isinstance(old, list):
        choices += [lambda: old[:-1], lambda: old * 2, lambda: old[::-1], lambda: [*old, chance.choice(NUMBERS)], lambda: old * 1000]
    if isinstance(old, dict):
        choices += [lambda: {**old, "extra": 1}, lambda: {key.upper(): item for key, item in old.items()}]
    return chance.choice(choices)()


def change_text(root: Path, chance: random.Random) -> str:
    """Seals a manifest of unusual text."""
    body = (root / "prtool.json").read_bytes()
    body = body[: body.rindex(b',\n "seal"')]
    forms: dict[str, Callable[[], bytes]] = {
        "field twice": lambda: body + b',\n "default_keep": 9',
        "seal twice": lambda: body + b',\n "seal": "' + b"0" * 64 + b'"',
        "inner field twice": lambda: body.replace(b'"depth": ', b'"depth": 2, "depth": ', 1),
        "byte-order mark": lambda: b"\xef\xbb\xbf" + body,
        "no UTF-8": lambda: body.replace(b'"tiny"', b'"\xff\xfe"', 1),
        "NaN": lambda: body.replace(b'"logit_bias": -0.25', b'"logit_bias": NaN', 1),
        "infinity": lambda: body.replace(b'"logit_bias": -0.25', b'"logit_bias": -Infinity', 1),
        "1e999": lambda: body.replace(b'"logit_bias": -0.25', b'"logit_bias": 1e999', 1),
        "401 digits": lambda: body.replace(b'"logit_bias": -0.25', b'"logit_bias": 1' + b"0" * 400, 1),
        "100,000 digits": lambda: body.replace(b'"depth": ', b'"depth": ' + b"1" * 100_000, 1),
        "float of 5,000 digits": lambda: body.replace(b'"logit_bias": -0.25', b'"logit_bias": 0.' + b"3" * 5000, 1),
        "33 deep": lambda: body + b',\n "x": ' + b"[" * 32 + b"]" * 32,
        "100,000 deep": lambda: body + b',\n "x": ' + b"[" * 100_000 + b"]" * 100_000,
        "100,000 deep, open": lambda: body + b',\n "x": ' + b'{"a":' * 100_000,
        "one line": lambda: json.dumps(json.loads(body + b"}")).encode()[:-1],
        "spaces": lambda: body.replace(b"\n", b"\n" + b" " * 2000),
        "long list": lambda: body + b',\n "x": [' + b"0," * 2_000_000 + b"0]",
        "empty lists": lambda: body + b',\n "x": [' + b"[]," * 3_000_000 + b"0]",
        "17 MiB": lambda: body + b',\n "x": "' + b"x" * (17 << 20) + b'"',
        "a million locations": lambda: body.replace(b'"locations": [', b'"locations": [' + b"1," * 1_000_000, 1),
        "many classes": lambda: body.replace(b'"names": [', b'"names": [' + b'"a",' * 1_000_001, 1),
        "many files": lambda: body + b",\n" + b"".join(b'"f%d":{"size":1,"sha256":"0"},' % n for n in range(20_000)) + b'"z":1',
        "list": lambda: b"[" + body + b"}]",
        "nothing": lambda: b"",
        "zero bytes": lambda: body + b"\x00" * 100,
    }
    name = chance.choice([*forms])
    write_sealed(root, forms[name]())
    return name


def consistent(root: Path, chance: random.Random) -> str:
    """Changes sizes in the manifest's fields and in every declared shape that depends on them, and often in the graphs too."""
    from hostile.graphs import declare

    value = read_manifest(root)
    prune, before = value["prune"], copy.deepcopy(value)
    fields: dict[str, Callable[[], object]] = {
        "size": lambda: value["preprocess"].update(size=[chance.choice(_SIZES), chance.choice(_SIZES)]),
        "native": lambda: value.update(native_size=[chance.choice(_SIZES), chance.choice(_SIZES)]),
        "native cost": lambda: value["cost"].update(native_tokens=chance.choice([0, 10, 11, 17, 2**53, -1]), native_embed_macs=chance.choice([0, 1])),
        "method": lambda: prune.update(method=chance.choice(["rank", "merge", "none", "pool", ""]), depth=chance.choice([3, 4])),
        "grid": lambda: prune.update(grid=[chance.choice(_SIZES), chance.choice(_SIZES)]),
        "prefix": lambda: prune.update(prefix_tokens=chance.choice([0, 2, 4096, 4097, -1])),
        "appended": lambda: prune.update(learnable_tokens=chance.choice([0, 2, 4096, 4097, -1])),
        "depth": lambda: prune.update(depth=chance.choice([3, 4, 1000, 1001, 10**12, 0])),
        "drop_ratios": lambda: prune.update(drop_ratios=[chance.choice([0, 1, 2**20, 2**20 + 1, 2**53, -1]), chance.choice([0, 1, 2**20, 2**53])]),
        "locations": lambda: prune.update(locations=chance.choice([[1, 2], [2, 1], [3, 3], [1, 3], [0, 1], [2, 4]])),
        "embed_dim": lambda: value["model"].update(embed_dim=chance.choice([1, 5, 7, 65536, 65537, 0])),
        "context": lambda: value["text"].update(context_length=chance.choice([1, 6, 8, 65536, 65537, 0])),
        "vocabulary": lambda: value["text"].update(vocab_size=chance.choice([1, 10, 12, 10**6, 2**31, 0])),
        "cost": lambda: value["cost"].update({chance.choice([*value["cost"]]): chance.choice([0, -1, 2**53, 1]) for _ in range(8)}),
        "keep": lambda: value.update(default_keep=chance.choice([1, 16, 17, 0, 10]), keep_range=chance.choice([[1, 16], [16, 16], [9, 3], [0, 99]])),
        "std": lambda: value["preprocess"].update(std=[chance.choice([1e-45, 1e-30, 0.0, -1.0, 1e300, 1e38]), 0.5, 0.5]),
        "mean": lambda: value["preprocess"].update(mean=[chance.choice([1e300, -1e38, 5e38, 0.1]), 0.5, 0.5]),
        "logits": lambda: value["model"].update(logit_scale=chance.choice([1e308, -1e308, 0, 1.7e308]), logit_bias=chance.choice([1e308, 0])),
        "fill": lambda: value["preprocess"].update(fill=chance.choice([255, 256, -1]), resize_mode="longest"),
        "ratio": lambda: value["preprocess"].update(resize_ratio=chance.choice([0, 0.5, 1, 8, 9, "2", 1.5]), resize_mode="longest"),
        "mode": lambda: value["preprocess"].update(resize_mode=chance.choice(["shortest", "longest", "squash"]), size=[8, chance.choice(_SIZES)]),
    }
    chosen = chance.sample([*fields], chance.choice([1, 1, 2]))
    for field in chosen:
        fields[field]()
    if before["native_size"] == before["preprocess"]["size"] and "native" not in chosen:
        value["native_size"] = value["preprocess"]["size"]
    prune = value["prune"]
    patches, kept = prune["grid"][0] * prune["grid"][1], prune["prefix_tokens"] + prune["learnable_tokens"]
    if "keep" not in chosen and patches >= 1:
        low = {"merge": max(1, patches - patches // 2), "none": patches}.get(prune.get("method", "rank"), 1)
        value.update(default_keep=max(low, patches // 2), keep_range=[low, patches])
    wanted = {
        "pixels": ["batch", 3, *value["preprocess"]["size"]],
        "full.pixels": ["batch", 3, *value["native_size"]],
        "embedding": ["batch", value["model"]["embed_dim"]],
        "pre.tokens": ["batch", patches + kept, 12],
        "pre.scores": ["batch", patches],
        "text.tokens": ["batch", value["text"]["context_length"]],
    }
    in_files = chance.random() < 0.8
    for role, graph in value["graphs"]["fp32"].items():
        for tensor in (*graph["inputs"], *graph["outputs"]):
            tensor["shape"] = wanted.get(f"{role}.{tensor['name']}", wanted.get(tensor["name"], tensor["shape"]))
        if in_files:
            declare(root / graph["file"], graph)
    reseal(root, value, digests=in_files)
    return (
        f"{', '.join(chosen)}: "
        + json.dumps({key: value[key] for key in value if value[key] != before[key] and key not in ("graphs", "files")})[:200]
    )


_SIZES = [1, 2, 3, 4, 5, 8, 9, 64, 1024, 1025, 4096, 8192, 8193, 10**6, 10**9, 0, -1]
