"""Damaged and hostile bundles against the Python reader; docs/bundle-format.md says what a reader must reject."""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="onnx makes the hostile graphs")
pytest.importorskip("tokenizers", reason="prompts need tokenizers")
from hostile.attack import FINE, Attack
from hostile.corpus import GROUPS, base_bundle
from hostile.graphs import GRAPHS, SECRET, change_graph
from prtool.bundle import Bundle
from prtool.errors import BundleError

SAMPLE = 150
HARMLESS = {"weights at another tensor's offset", "weights file of NaN"}
"""Other numbers, in their place."""


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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_bundle(tmp_path_factory.mktemp("hostile") / "base")


@pytest.fixture
def attack(tmp_path: Path) -> Iterator[Attack]:
    made = Attack(tmp_path, ("ort",))
    yield made
    made.close()


def test_a_sample_of_every_group(attack: Attack) -> None:
    assert set(counted(attack, range(SAMPLE), "ort")) == set(GROUPS)


@pytest.mark.parametrize("method", ["merge", "none"])
def test_a_sample_of_bundles_of_other_methods(tmp_path: Path, method: str) -> None:
    attack = Attack(tmp_path, ("ort",), method)
    assert len(counted(attack, range(40), "ort")) > 5
    attack.close()


@pytest.mark.parametrize("kind", sorted(kind for kind in GRAPHS if kind.startswith("weights") and kind not in HARMLESS))
def test_weights_that_lie_anywhere_else_are_rejected(base: Path, tmp_path: Path, kind: str) -> None:
    """Before any engine sees the graph, whichever tensor of whichever graph it is."""
    for seed in range(3):
        root, outside = tmp_path / str(seed) / "bundle", tmp_path / str(seed) / "outside"
        shutil.copytree(base, root)
        outside.mkdir()
        (outside / "secret.data").write_bytes(SECRET)
        change_graph(root, outside, random.Random(seed), kind)
        with pytest.raises(BundleError):
            Bundle.open(root)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_cases(attack: Attack) -> None:
    counted(attack, range(SAMPLE, 10_000), "ort")


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("method", ["merge", "none"])
def test_two_thousand_cases_of_other_methods(tmp_path: Path, method: str) -> None:
    attack = Attack(tmp_path, ("ort",), method)
    counted(attack, range(40, 2000), "ort")
    attack.close()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    attack = Attack(tmp_path, ("openvino",))
    counted(attack, range(0, 10_000, 8), "openvino")
    attack.close()
