"""Decoding and preparing one photograph of 12 megapixels, C++ and Python in turns: `python image_bench.py BUILD_DIRECTORY [FILE]`."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

from prtool.runtime.images.decode import open_image
from prtool.runtime.images.preprocess import prepare
from prtool.spec import Preprocess

CLIP = Preprocess((224, 224), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
WARMUP_RUNS = 3
RUNS = 31


def photograph(path: Path) -> None:
    """12 megapixels with the detail of a photograph, roughly: 3 MB at quality 90."""
    source = np.random.default_rng(0)
    coarse = Image.fromarray(source.integers(0, 256, (94, 125, 3), dtype=np.uint8)).resize((4000, 3000), Image.Resampling.BICUBIC)
    grain = Image.fromarray(source.integers(0, 256, (3000, 4000, 3), dtype=np.uint8))
    Image.blend(coarse, grain, 0.06).save(path, "JPEG", quality=90)


def time_python(path: Path) -> tuple[float, float]:
    """Milliseconds of decoding and of preparing."""
    start = time.perf_counter()
    image = open_image(path)
    decoded = time.perf_counter()
    prepare(image, CLIP)
    return (decoded - start) * 1e3, (time.perf_counter() - decoded) * 1e3


def time_both(program: Path, path: Path) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    cpp, python = [], []
    for _ in range(WARMUP_RUNS + RUNS):
        print(path, file=process.stdin, flush=True)
        decoding, preparing = map(float, process.stdout.readline().split())
        cpp.append((decoding, preparing))
        python.append(time_python(path))
    process.communicate()
    return cpp[WARMUP_RUNS:], python[WARMUP_RUNS:]


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    program = next(Path(sys.argv[1]).rglob("prtool-image-bench"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder, "photograph.jpg")
        if len(sys.argv) <= 2:
            photograph(path)
        with Image.open(path) as image:
            print(f"{image.width} x {image.height}, {path.stat().st_size / 1e6:.1f} MB, median of {RUNS} runs, ms")
        cpp, python = time_both(program, path)
    print(f"{'':10}{'decode':>10}{'prepare':>10}{'both':>10}")
    totals = {}
    for name, runs in (("C++", cpp), ("Python", python)):
        totals[name] = statistics.median(sum(run) for run in runs)
        print(f"{name:10}{statistics.median(run[0] for run in runs):10.1f}{statistics.median(run[1] for run in runs):10.1f}{totals[name]:10.1f}")
    ratio = statistics.median(sum(b) / sum(a) for a, b in zip(cpp, python, strict=True))
    print(f"Python takes {ratio:.2f} times as long (Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')})")


if __name__ == "__main__":
    main()
