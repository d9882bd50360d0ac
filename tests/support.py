"""Helpers that several tests share: where real data lies, and tiny seeded models."""

import os
from pathlib import Path

import pytest

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
