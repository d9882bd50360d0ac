"""Damaged and hostile bundles against the Python reader; docs/bundle-format.md says what a reader must reject."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="onnx makes the hostile graphs")
pytest.importorskip("tokenizers", reason="prompts need tokenizers")
from hostile.attack import FINE, Attack
from hostile.corpus import GROUPS

SAMPLE = 150


def counted(attack: Attack, numbers: range, engine: str) -> Counter[str]:
    """Groups and their cases; every failure is shown."""
    groups: Counter[str] = Counter()
    failures = []
    for number in numbers:
        case, outcome, found = attack.run(number, engine)
        groups[case.group] += 1
        if outcome not in FINE:
            failures.append((outcome, case, found["fault"], found.get("peak_mib")))
    assert not failures
    return groups


@pytest.fixture
def attack(tmp_path: Path) -> Iterator[Attack]:
    made = Attack(tmp_path, ("ort",))
    yield made
    made.close()


def test_a_sample_of_every_group(attack: Attack) -> None:
    assert set(counted(attack, range(SAMPLE), "ort")) == set(GROUPS)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_cases(attack: Attack) -> None:
    counted(attack, range(SAMPLE, 10_000), "ort")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    attack = Attack(tmp_path, ("openvino",))
    counted(attack, range(0, 10_000, 8), "openvino")
    attack.close()
