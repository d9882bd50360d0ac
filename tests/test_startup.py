"""Arguments are checked before PyTorch or an engine's library is imported, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import TinyModel, tiny_bundle
from PIL import Image

from prtool.records import to_plain
from prtool.spec import PruneSpec
from prtool.store import write_sealed
from prtool.trainer.config import TrainConfig
from prtool.trainer.runs.record import RECORD_NAME, SCHEMA, Record
from prtool.trainer.settings import ScorerConfig

HEAVY = ("torch", "torchvision", "open_clip", "timm", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "nncf", "matplotlib")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, a run's record, an image and data that are gone."""
    folder = tmp_path_factory.mktemp("project")
    tiny_bundle(folder / "bundle", TinyModel())
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    (folder / "run").mkdir()
    spec = PruneSpec(locations=(1,), depth=2, prefix_tokens=1, grid=(3, 4))
    record = Record(SCHEMA, "ViT-B-16", "", 0, "0" * 64, 8, spec, ScorerConfig(), True, (), (), TrainConfig().to_json())
    write_sealed(folder / "run" / RECORD_NAME, to_plain(record))
    return folder


WRONG = [
    "train --set golden.goup=1",
    "train --set fit.loss=hinge",
    "train --location x",
    "train --data nothing --model ViT-B-16",
    "train --data nonsense:photos",
    "train --model ViT-B-16",
    "train --phase none --model ViT-B-61",
    "train --phase none --model local-dir:nothing",
    "train --phase none --model ViT-B-16 --pretrained nothing.pt",
    "train --phase none --model ViT-B-16 -o a.png",
    "eval nothing",
    "eval run",
    "eval run --data nothing",
    "eval run --method patchranking",
    "eval run --images -3",
    "eval run -o x.doc",
    "export nothing",
    "export run --keep 0.5,0.6",
    "export run --keep 5000",
    "export run --data nothing",
    "export run --precision fp8",
    "export run --precision int8",
    "export run -o run",
    "verify --bundle nothing",
    "verify --engine orrt",
    "verify --precision bf16",
    "verify --data nothing",
    "verify --data . --run nothing",
    "bench --bundle nothing",
    "bench --engine orrt",
    "bench --precision int8",
    "bench --keep 5000",
    "bench --set reference=nothing",
    "bench -o x.doc",
    "embed nothing",
    "embed bundle",
    "embed a.png --bundle nothing",
    "embed a.png --engine orrt",
    "embed a.png --precision int8",
    "embed a.png --keep 5000",
    "embed a.png --mode full --keep 0.5",
    "embed a.png --batch 0",
    "embed a.png -o x.txt",
    "classify nothing.png",
    "classify .",
    "classify a.png --threads -1",
    "classify a.png --set precision=fp16",
    "classify a.png --keep 5000",
    "show nothing.png",
    "show a.png --keep 5000",
    "show a.png -o x.jpg",
    "build --bundle nothing --engine ort",
    "build --engine ort --batch 1:2",
    "build --engine trt --set levl=3",
    "bench --set budget=1",
    "tune nothing --max-drop 1",
    "tune run",
    "tune run --max-drop -4",
    "tune run --max-drop 1 --engine orrt",
    "tune run --max-drop 1 --precision int9",
    "tune run --max-drop 1 --keep 0.5,6",
    "tune run --max-drop 1 --data nothing",
    "reproduce nothing --data .",
    "reproduce main --data nothing",
    "reproduce main --data . --model ViT-B-61",
    "data download nothing",
    "engine-cache clear",
    "nothing",
]


PROGRAM = """
import json, sys
from click.testing import CliRunner
from prtool.cli.main import app
heavy = json.loads(sys.argv[1])
for line in sys.stdin.read().splitlines():
    result = CliRunner().invoke(app, line.split())
    print(json.dumps([line, result.exit_code, result.stdout, result.stderr, [name for name in heavy if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def said(project: Path) -> dict[str, list[Any]]:
    """What a fresh process does with each line, and which heavy modules it has by then."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(HEAVY)]
    done = subprocess.run(command, input="\n".join(WRONG), cwd=project, capture_output=True, text=True, check=True)
    return {line: rest for line, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_argument_is_said_before_heavy_imports(line: str, said: dict[str, list[Any]], project: Path) -> None:
    status, stdout, stderr, heavy = said[line]
    assert (status in (1, 2), stdout, stderr.count("\n"), heavy) == (True, "", 1, []), stderr
    assert "is not installed" not in stderr
    assert sorted(item.name for item in project.iterdir()) == ["a.png", "bundle", "run"]
