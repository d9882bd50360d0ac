"""A seeded corpus of damaged and hostile bundles, one folder a case, for readers in any language.

::

    PYTHONPATH=tests python -m hostile.corpus base BASE                 # the good bundle that every case starts from
    PYTHONPATH=tests python -m hostile.corpus cases BASE OUT 0 100      # cases 0 to 99: OUT/0/bundle, OUT/1/bundle, ...

`cases` prints one line of JSON a case: `number`, `group`, `sealed`, `what`. A case depends on its number, `--seed` and BASE alone.

`sealed` false is damage: a reader must reject the bundle, or the part that is asked for, or give exactly what BASE gives.
`sealed` true is what a hostile author made and sealed: a reader must reject it or run it as what it says, without a crash, a hang,
or reading anything outside its folder. `OUT/N/outside/secret.data` lies there to be read by mistake.
"""

import argparse
import json
import os
import random
import shutil
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hostile.graphs import GRAPHS, SECRET, change_bytes, change_graph
from hostile.sealing import read_manifest, reseal
from hostile.values import change_json, change_text, consistent, hostile_name

SEED = 17


@dataclass(frozen=True)
class Case:
    """One case; see the module's text."""

    number: int
    group: str
    sealed: bool
    what: str


@dataclass
class Ground:
    """Where a case is made: the bundle's folder, a folder next to it, and its source of chance."""

    root: Path
    outside: Path
    chance: random.Random

    def names(self) -> list[str]:
        """The bundle's files."""
        return [*read_manifest(self.root)["files"]]


def base_bundle(root: Path, method: str = "rank") -> Path:
    """Writes the good bundle: two locations, a learnable token, text, classes and probe; graphs share their weights.

    Of the methods "merge" and "none", which have no learnable tokens, the pruned encoder reads smaller images than FULL.
    """
    import numpy as np
    from models import CONTEXT, SIDE, TinyModel, tiny_bundle
    from safetensors.numpy import save_file

    from prtool.bundle import seal

    models = {"rank": TinyModel((2, 3), learnable_tokens=1), "merge": TinyModel((1, 2), method="merge", side=6)}
    model = models.get(method) or TinyModel((), method=method, side=6)
    made = tiny_bundle(root, model)
    share_weights(root)
    pixels, native, tokens = model.pixels(2), model.pixels(2, side=SIDE), np.random.default_rng(0).integers(0, 8, (2, CONTEXT))
    tensors = {"pixels": pixels, "embedding_full": model.embed_full(native), "text_tokens": tokens, "text_embedding": model.embed_text(tokens)}
    tensors |= {} if model.side == SIDE else {"pixels_full": native}
    kept = {"rank": (10, 4), "merge": (9, 4), "none": (9,)}[method]
    tensors |= {f"embedding_k{k}": model.embed(pixels, model.spec.counts(k)) for k in kept}
    kinds = {name: np.int64 if name == "text_tokens" else np.float32 for name in tensors}
    save_file({name: np.ascontiguousarray(value, kinds[name]) for name, value in tensors.items()}, root / "probe.safetensors")
    (root / "parity.json").write_text("{}\n")
    seal(root, made.manifest)
    return root


def share_weights(root: Path) -> None:
    """Moves the larger tensors of every graph into weights.bin, equal ones once."""
    import onnx

    content = bytearray()
    offsets: dict[bytes, int] = {}
    for path in sorted(root.glob("*.onnx")):
        proto = onnx.load(path)
        for weight in proto.graph.initializer:
            raw = bytes(weight.raw_data)
            if len(raw) < 100:
                continue
            if raw not in offsets:
                content += bytes(-len(content) % 64)
                offsets[raw] = len(content)
                content += raw
            weight.ClearField("raw_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", "weights.bin"), ("offset", offsets[raw]), ("length", len(raw))):
                weight.external_data.add(key=key, value=str(value))
        path.write_bytes(proto.SerializeToString())
    (root / "weights.bin").write_bytes(content)


def manifest_bits(ground: Ground) -> str:
    """One bit of prtool.json."""
    return _flip(ground.root / "prtool.json", ground.chance)


def file_bits(ground: Ground) -> str:
    """One bit, or a few bytes, of another file."""
    path = ground.root / ground.chance.choice(ground.names())
    if ground.chance.random() < 0.5:
        return _flip(path, ground.chance)
    content = bytearray(path.read_bytes())
    first = ground.chance.randrange(len(content))
    count = ground.chance.randint(1, 64)
    content[first : first + count] = ground.chance.randbytes(len(content[first : first + count]))
    path.write_bytes(content)
    return f"bytes from {first} of {path.name}"


def file_kinds(ground: Ground) -> str:
    """A file that is cut, longer, swapped, gone, or no plain file."""
    name = ground.chance.choice(["prtool.json", *ground.names()])
    kind = ground.chance.choice([*KINDS])
    KINDS[kind](ground, ground.root / name)
    return f"{kind}: {name}"


def _flip(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    place, bit = chance.randrange(len(content)), chance.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} of {path.name}"


def _replace(make: Callable[[Ground, Path], object]) -> Callable[[Ground, Path], object]:
    def replaced(ground: Ground, path: Path) -> None:
        content = path.read_bytes()
        (ground.outside / path.name).write_bytes(content)
        path.unlink()
        make(ground, path)

    return replaced


def _socket(_: Ground, path: Path) -> None:
    # The name of a socket has at most 107 bytes.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _device(_: Ground, path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        path.symlink_to("/dev/zero")


def _cut(ground: Ground, path: Path) -> None:
    os.truncate(path, ground.chance.randrange(path.stat().st_size))


def _longer(ground: Ground, path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(ground.chance.randbytes(ground.chance.choice([1, 7, 5000])))


def _swap(ground: Ground, path: Path) -> None:
    other = ground.root / ground.chance.choice(ground.names())
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def _huge(_: Ground, path: Path) -> None:
    os.truncate(path, 1 << 40)


KINDS: dict[str, Callable[[Ground, Path], object]] = {
    "cut": _cut,
    "longer": _longer,
    "swapped": _swap,
    "a terabyte": _huge,
    "deleted": _replace(lambda _, __: None),
    "FIFO": _replace(lambda _, path: os.mkfifo(path)),
    "link out": _replace(lambda ground, path: path.symlink_to(ground.outside / path.name)),
    "link to itself": _replace(lambda _, path: path.symlink_to(path.name)),
    "link to a device": _replace(lambda _, path: path.symlink_to("/dev/zero")),
    "link to random": _replace(lambda _, path: path.symlink_to("/dev/urandom")),
    "device": _replace(_device),
    "socket": _replace(_socket),
    "folder": _replace(lambda _, path: path.mkdir()),
}


def json_values(ground: Ground) -> str:
    """One value of the manifest is another, sealed again."""
    value = read_manifest(ground.root)
    what = change_json(value, ground.chance)
    reseal(ground.root, value, digests=False)
    return what


def json_text(ground: Ground) -> str:
    """The manifest's text is of an unusual form, sealed again."""
    return change_text(ground.root, ground.chance)


def names(ground: Ground) -> str:
    """A file of the bundle has a hostile name."""
    value = read_manifest(ground.root)
    name = ground.chance.choice([*value["files"]])
    new = hostile_name(ground.chance, name)
    value["files"][new] = value["files"].pop(name)
    text = json.dumps(value).replace(f'"file": {json.dumps(name)}', f'"file": {json.dumps(new)}')
    reseal(ground.root, json.loads(text), digests=False)
    try:
        (ground.root / new).parent.mkdir(parents=True, exist_ok=True)
        if ground.root.resolve() in (ground.root / new).resolve().parents:
            shutil.copy(ground.root / name, ground.root / new)
    except (OSError, ValueError):
        pass
    return f"{name} is called {new!r:.100}"


def self_consistent(ground: Ground) -> str:
    """Sizes, counts and costs at and beyond their limits, in manifest and graphs alike."""
    return consistent(ground.root, ground.chance)


def tensors(ground: Ground) -> str:
    """classes.safetensors or probe.safetensors with another header or other bytes."""
    path = ground.root / ground.chance.choice(["classes.safetensors", "probe.safetensors"])
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if ground.chance.random() < 0.7:
        what = change_json(header, ground.chance)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    else:
        what = _flip(path, ground.chance)
    reseal(ground.root, read_manifest(ground.root))
    return f"{path.name}: {what}"


def tokenizer(ground: Ground) -> str:
    """tokenizer.json with other values."""
    path = ground.root / "tokenizer.json"
    value = json.loads(path.read_bytes())
    bombs: list[Callable[[], object]] = [
        lambda: value["padding"].update(pad_to_multiple_of=10**10),
        lambda: value["padding"].update(strategy={"Fixed": 10**9}),
        lambda: value.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "////////"}),
        lambda: value.update(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "a" * 10**5}),
        lambda: value.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}),
        lambda: value["model"].update(vocab={}),
        lambda: value["model"]["vocab"].update(cat=2**32 - 1),
        lambda: value.update(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": []}),
    ]
    if ground.chance.random() < 0.3:
        number = ground.chance.randrange(len(bombs))
        bombs[number]()
        what = f"bomb {number}"
    else:
        what = change_json(value, ground.chance)
    path.write_text(json.dumps(value))
    reseal(ground.root, read_manifest(ground.root))
    return what


def graph_bytes(ground: Ground) -> str:
    """A graph file with other bytes."""
    return change_bytes(ground.root, ground.chance)


def graphs(ground: Ground) -> str:
    """A graph that the exporter never writes: other shapes, loops, functions, traps in external data."""
    return change_graph(ground.root, ground.outside, ground.chance, ground.chance.choice([*GRAPHS]))


# Group -> (how it is made, whether its author sealed it, how many of 100 cases).
GROUPS: dict[str, tuple[Callable[[Ground], str], bool, int]] = {
    "one bit of prtool.json": (manifest_bits, False, 15),
    "bytes of another file": (file_bits, False, 8),
    "cut, longer, swapped, FIFO, link, device": (file_kinds, False, 8),
    "JSON values, sealed": (json_values, True, 20),
    "JSON text, sealed": (json_text, True, 5),
    "names, sealed": (names, True, 6),
    "self-consistent values, sealed": (self_consistent, True, 8),
    "safetensors, sealed": (tensors, True, 7),
    "tokenizer, sealed": (tokenizer, True, 5),
    "bytes of graphs, sealed": (graph_bytes, True, 9),
    "hostile graphs, sealed": (graphs, True, 9),
}
_ORDER = [name for name, (_, _, share) in GROUPS.items() for _ in range(share)]
# Neighbouring numbers are of different groups, so that any range of them is a sample of all.
random.Random(0).shuffle(_ORDER)


def write_case(base: Path, out: Path, number: int, seed: int = SEED) -> Case:
    """Makes one case: the new folders `out`/bundle and `out`/outside.

    Args:
        base: a folder of `base_bundle`.
        out: a new folder.
        number: of the case, from 0.
        seed: of the corpus.
    """
    group = _ORDER[number % len(_ORDER)]
    make, sealed, _ = GROUPS[group]
    root, outside = out / "bundle", out / "outside"
    shutil.copytree(base, root)
    outside.mkdir()
    (outside / "secret.data").write_bytes(SECRET)
    return Case(number, group, sealed, make(Ground(root, outside, random.Random(f"{seed}:{number}"))))


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("base").add_argument("base", type=Path)
    cases = commands.add_parser("cases")
    cases.add_argument("base", type=Path)
    cases.add_argument("out", type=Path)
    cases.add_argument("first", type=int)
    cases.add_argument("count", type=int)
    cases.add_argument("--seed", type=int, default=SEED)
    chosen = parser.parse_args()
    if chosen.command == "base":
        base_bundle(chosen.base)
        return
    for number in range(chosen.first, chosen.first + chosen.count):
        sys.stdout.write(json.dumps(asdict(write_case(chosen.base, chosen.out / str(number), number, chosen.seed))) + "\n")


if __name__ == "__main__":
    main()
