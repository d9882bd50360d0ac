"""What a hostile author does last: digests and seal that fit what was changed."""

import hashlib
import json
from pathlib import Path
from typing import Any


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest's values, without the seal."""
    value: dict[str, Any] = json.loads((root / "prtool.json").read_bytes())
    del value["seal"]
    return value


def reseal(root: Path, value: dict[str, Any], *, digests: bool = True) -> None:
    """Writes the manifest with a seal that fits; with `digests`, sizes and digests too, and files that are new are listed."""
    if digests:
        names = [item.relative_to(root).as_posix() for item in root.rglob("*") if item.is_file() and not item.is_symlink()]
        contents = {name: (root / name).read_bytes() for name in sorted(names) if name != "prtool.json"}
        value["files"] = {name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in contents.items()}
    write_sealed(root, json.dumps(value, indent=1).removesuffix("\n}").encode())


def write_sealed(root: Path, body: bytes) -> None:
    """Writes `body`, an object without its last brace, and the seal that fits."""
    ending = f',\n "seal": "{hashlib.sha256(body).hexdigest()}"\n}}\n'
    (root / "prtool.json").write_bytes(body + ending.encode())
