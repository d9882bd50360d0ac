"""Strict readers: values at and beyond each limit, and a seal that no change passes."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from prtool.store import seal, unseal
from prtool.strict import parse_json, parse_toml, read_regular

LONG_NAMES = tuple(".".join("a" * count) + " = 1" for count in (33, 32_000, 100_000))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * 33 + "]" * 33, "1" * 5000, "1" + "0" * 400, "1e999", "NaN", "-Infinity", str(2**53 + 1), '{"a": 1, "a": 2}', "{", '"\xff"'],
    ids=lambda text: text[:9],
)
def test_json_beyond_a_limit_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text.encode("latin-1"))


def test_json_within_the_limits() -> None:
    value = {"a": [2**53, -(2**53), 1.5, None, True, "é"], "b": {"a": 1}}
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(b"[" * 32 + b"]" * 32)


@pytest.mark.parametrize(
    "text",
    ["x = " + "[" * 100_000, "x = " + "[" * 40 + "]" * 40, "x = " + "1" * 5000, "x = 1" + "0" * 400, "x = inf", *LONG_NAMES, "x"],
    ids=lambda text: text[:9],
)
def test_toml_beyond_a_limit_is_a_value_error(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"\w"):
        parse_toml(text)
    assert time.monotonic() - started < 10


def test_toml_within_the_limits_is_read_in_time() -> None:
    started = time.monotonic()
    assert parse_toml(".".join("a" * 32) + f" = '{'b.c ' * 100}'")
    assert parse_toml("[golden]\ngroup = 4\n[prune]\nlocations = [6, 8]") == {"golden": {"group": 4}, "prune": {"locations": [6, 8]}}
    assert parse_toml("x = '" + "a" * 60_000 + "'") and parse_toml("a" * 60_000 + " = 1")
    assert time.monotonic() - started < 5


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.write_bytes(b"12345")
    for path in (pipe, Path("/dev/zero"), tmp_path, large):
        with pytest.raises((ValueError, IsADirectoryError)):
            read_regular(path, 4)
    assert read_regular(large, 5) == b"12345"
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 5)


def test_the_seal_is_the_digest_of_all_before_it() -> None:
    content = seal({"schema": 1, "names": ["a", "ü"]})
    body, _, tail = content.partition(b',\n "seal": "')
    assert body == b'{\n "schema": 1,\n "names": [\n  "a",\n  "\\u00fc"\n ]'
    assert tail == hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
    assert json.loads(content)["seal"] == hashlib.sha256(body).hexdigest()
    assert unseal(content) == {"schema": 1, "names": ["a", "ü"]}


def test_every_changed_byte_breaks_the_seal() -> None:
    content = seal({"schema": 1, "name": "a"})
    for place in range(len(content)):
        for changed in (content[place] ^ 1, content[place] ^ 32):
            with pytest.raises(ValueError, match=r"\w"):
                unseal(content[:place] + bytes([changed]) + content[place + 1 :])
    for changed in (b"", content[1:], content[:-1], content + b"\n", content + content, b"{}"):
        with pytest.raises(ValueError, match=r"\w"):
            unseal(changed)


def test_a_deep_object_with_a_right_seal_is_rejected() -> None:
    body = b'{\n "schema": ' + b"[" * 100_000
    with pytest.raises(ValueError, match="nested"):
        unseal(body + b',\n "seal": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n')
