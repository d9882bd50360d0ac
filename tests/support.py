"""Helpers that several tests share: where real data lies, and tiny seeded models."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from prtool.store import seal, unseal

REPO = Path(__file__).resolve().parent.parent


def shared_dir(*parts: str) -> Path:
    """A path inside the folder of shared real data; skips the test, with the reason, where it is absent.

    It lies beside the checkout (`../shared`), or where PRTOOL_SHARED says.
    """
    root = Path(os.environ.get("PRTOOL_SHARED", REPO.parent / "shared"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real data absent: {path} (set PRTOOL_SHARED to the folder that holds data/ and models/)")
    return path


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the values of a bundle's manifest and seals it again, as a hostile author would."""
    path = root / "prtool.json"
    value = unseal(path.read_bytes())
    change(value)
    path.write_bytes(seal(value))


def settable(kind: type, prefix: str = "") -> set[str]:
    """The dotted names of a configuration's fields."""
    found = set()
    for name, hint in get_type_hints(kind).items():
        found |= settable(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else {prefix + name}
    return found
