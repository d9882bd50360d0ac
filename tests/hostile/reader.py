"""Runs bundles through the Python reader in a child process: one line of JSON for each case on stdin, one result on stdout.

The parent kills a child that hangs, so a case costs no more than its time limit; `attack.py` is that parent.
"""

import ctypes
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prtool.bundle import Bundle
from prtool.engines.base import EngineOptions
from prtool.errors import PrtoolError
from prtool.runtime.encoder import Encoder
from prtool.runtime.pipeline import modes_of
from prtool.runtime.verify import verify
from prtool.spec import Keep

DATA_BYTES = 768 << 20
"""What a child may add to its memory, as the documentation advises for bundles of strangers."""
LINE_CHARACTERS = 1200
_IN_ACCESS, _IN_OPEN, _IN_NONBLOCK = 0x1, 0x20, 0x800
Results = dict[str, Any]


def steps(root: Path, engine: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What a user does with a bundle, part by part: (name, call); a part that raises PrtoolError leaves the others."""
    image = np.random.default_rng(2).integers(0, 256, (11, 9, 3)).astype(np.uint8)
    tokens = np.random.default_rng(3).integers(0, 8, (2, 7))
    opened = Bundle.open(root)
    manifest = opened.manifest
    low, high = manifest.keep_range
    options = EngineOptions(threads=2, spinning=False)
    yield "manifest", lambda: str(manifest.prune)
    yield "bound", lambda: manifest.theoretical_speedup(manifest.default_keep)
    for mode in modes_of(manifest.prune):
        # Of the sizes of the good bundles, whatever a hostile one asks for.
        side = 6 if manifest.preprocess_for(mode).size == (6, 6) else 8
        pixels = np.random.default_rng(1).standard_normal((3, 3, side, side)).astype(np.float32)
        try:
            encoder = Encoder.load(opened, engine=engine, mode=mode, options=options)
        except PrtoolError as error:
            yield f"{mode}.load", _raiser(error)
            continue
        with encoder:
            yield f"{mode}.pixels", lambda encoder=encoder, pixels=pixels: encoder.encode_pixels(pixels)
            yield f"{mode}.images", lambda encoder=encoder: encoder.encode_images([image])
            if mode == "fused":
                k = Keep.count(5 if low <= 5 <= high else high)
                yield "keep", lambda encoder=encoder, pixels=pixels, k=k: encoder.encode_pixels(pixels[:1], k)
            if mode == "split":
                yield "scores", lambda encoder=encoder, pixels=pixels: encoder.scores(pixels)
                yield "kept", lambda encoder=encoder, pixels=pixels: encoder.kept(pixels)[-1]
            if mode == "fused":
                yield "classes", lambda encoder=encoder: [[(p.label, p.probability) for p in row] for row in encoder.classify([image], top=2)]
                yield "text", lambda encoder=encoder: encoder.encode_text(tokens)
                yield "prompts", lambda encoder=encoder: encoder.encode_text(["a photo of a cat", "dog " * 3])
    yield "verify", lambda: verify(opened, engine, options).cosine


def _raiser(error: PrtoolError) -> Callable[[], Any]:
    def raise_it() -> Any:
        raise error

    return raise_it


def attempt(root: Path, engine: str) -> dict[str, Any]:
    """Every part's result (arrays as bytes in hexadecimal) or error line; `fault` where something else than a PrtoolError came."""
    results: Results = {}
    errors: dict[str, str] = {}
    try:
        for name, call in steps(root, engine):
            try:
                results[name] = _plain(call())
            except PrtoolError as error:
                errors[name] = str(error)
    except PrtoolError as error:
        errors["open"] = str(error)
    except BaseException as error:  # noqa: BLE001 - panics of Rust are no Exceptions
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
        return {"fault": f"{type(error).__name__} at {where}: {error}"[:300]}
    long = [name for name, line in errors.items() if len(line) > LINE_CHARACTERS or not line.isprintable()]
    fault = f"the message of {long[0]} is too long or holds control characters: {errors[long[0]]!r:.200}" if long else ""
    return {"fault": fault, "results": results, "errors": {name: line[:160] for name, line in errors.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tobytes().hex()}" if value.size < 10_000 else f"{value.dtype}{value.shape}"
    return value


class Watch:
    """Sees every opening of files in one folder, by native code too (inotify)."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._library.inotify_init1(_IN_NONBLOCK)
        self._library.inotify_add_watch(self._descriptor, os.fsencode(folder), _IN_ACCESS | _IN_OPEN)

    def close(self) -> bool:
        """Whether something was opened."""
        try:
            return bool(os.read(self._descriptor, 4096))
        except BlockingIOError:
            return False
        finally:
            os.close(self._descriptor)


def peak_mib(reset: bool = False) -> int:
    """The most resident memory since the last reset, in MiB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
        return 0
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def main() -> None:
    """Answers until stdin ends."""
    most = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024 + DATA_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        case = json.loads(line)
        root = Path(case["root"])
        watch = Watch(root.parent / "outside")
        peak_mib(reset=True)
        found = attempt(root, case["engine"])
        found |= {"peak_mib": peak_mib(), "outside": watch.close()}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
