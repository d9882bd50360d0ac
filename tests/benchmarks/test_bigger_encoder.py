"""A bigger encoder at the price of a small one: the whole script on two tiny models."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from local_model import write_model

from benchmarks.bigger_encoder import main


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_bigger_encoder_is_shortened_to_the_cost_of_the_small_one(tmp_path: Path) -> None:
    # 16 patches and 3 blocks against 64 patches and 6 blocks.
    small = write_model(tmp_path / "small", layers=3, image_size=32)
    bigger = write_model(tmp_path / "bigger", layers=6, image_size=64)
    arguments = [
        "--small",
        small,
        "--bigger",
        bigger,
        "--reducer",
        "none,rank,merge@40,merge@56",
        "--engine",
        "ort",
        "--batch",
        "2",
        "--seconds",
        "0",
    ]
    result = CliRunner().invoke(main, [*arguments, "--work", str(tmp_path / "work"), "-o", str(tmp_path / "out.json")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["model"], row["reducer"]) for row in rows[:2]] == [("small", "in full"), ("bigger", "in full")]
    assert rows[1]["share_of_small"] > 4.0
    shortened = rows[2:]
    assert shortened
    full = rows[1]["gmacs"]
    for row in shortened:
        assert abs(row["gmacs"] - rows[0]["gmacs"]) <= 0.05 * full
        assert row["encoder"]["images_per_s"] > 0
    assert rows[0]["encoder"]["speedup"] == 1.0
    equal = ["--small", small, "--bigger", small, "--reducer", "none", "--work", str(tmp_path / "work")]
    again = CliRunner().invoke(main, equal)
    assert again.exit_code == 1
    assert "give a bigger encoder" in again.output
