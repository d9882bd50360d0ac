"""Sealed JSON: an object whose last member is the SHA-256 of every byte before it, so that a changed file is found before it is used."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from prtool.strict import parse_json

_SEAL = re.compile(rb',\n "seal": "([0-9a-f]{64})"\n}\n')
_SEAL_BYTES = len(',\n "seal": ""\n}\n') + 64


def seal(value: Mapping[str, object]) -> bytes:
    """The object as indented JSON with its seal.

    Args:
        value: plain JSON of at least one member, none of them named "seal"; NaN and infinity raise ValueError.
    """
    body = json.dumps(value, indent=1, allow_nan=False).removesuffix("\n}").encode()
    return body + f',\n "seal": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def unseal(content: bytes) -> dict[str, Any]:
    """What `seal` was given.

    Raises:
        ValueError: it has no seal, was changed, or is not strict JSON (see `prtool.strict.parse_json`).
    """
    body = content[:-_SEAL_BYTES]
    found = _SEAL.fullmatch(content[len(body) :])
    if found is None:
        raise ValueError("it does not end with a seal")
    digest = hashlib.sha256(body).hexdigest()
    if digest.encode() != found.group(1):
        raise ValueError(f"it was changed: its SHA-256 is {digest[:12]}, but its seal says {found.group(1)[:12].decode()}")
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    del value["seal"]
    return value
