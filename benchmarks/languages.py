"""C++ compared with Python on one bundle: the same embeddings and classes, images a second in one interleaved run, and memory.

python -m benchmarks.languages BUNDLE IMAGES... --build runtime/cpp/build/release [--keep 1.0,0.6,0.4] [--rounds 3] [-o FILE.json]
IMAGES are files or folders. Needs a bundle with one location, for ONNX Runtime alone.
"""

import json
import os
import re
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import NAMES, Script, publish_json
from prtool.bundle import Bundle
from prtool.errors import ConfigError
from prtool.runtime.classes import ClassTable
from prtool.runtime.machine import library_versions, this_machine
from prtool.spec import Keep


@dataclass(frozen=True)
class Ended:
    """A program that ran: its output, and its peak memory."""

    said: str
    peak_mib: float

    @property
    def images_per_s(self) -> float:
        """The rate that it printed."""
        return float(re.findall(r"([\d.]+) images/s", self.said)[-1])


def run(words: list[object]) -> Ended:
    """Runs a program alone and waits for it."""
    with tempfile.TemporaryFile() as output:
        actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, output.fileno(), 2)]
        child = os.posix_spawn(str(words[0]), [str(word) for word in words], os.environ, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
        output.seek(0)
        said = output.read().decode()
    if status != 0:
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{said}")
    return Ended(said, usage.ru_maxrss / 1024)


def compare(bundle: Bundle, images: tuple[Path, ...], keep: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One keep: both languages in turn, `rounds` times, and what they gave."""
    cpp, python = folder / "cpp.npy", folder / "python.npz"
    build, batch, chosen = options["build"], options["batch"], ["--keep", keep, "--batch", options["batch"]]
    both: dict[str, list[Ended]] = {"cpp": [], "python": []}
    for number in range(options["rounds"]):
        order = ("cpp", "python") if number % 2 == 0 else ("python", "cpp")
        for language in order:
            if language == "cpp":
                words = [build / "programs" / "prtool-run", "embed", bundle.path, *images, "-o", cpp, *chosen]
            else:
                words = [Path(sys.executable).parent / "prtool", "embed", "--bundle", bundle.path, *images, "-o", python, *chosen]
            both[language].append(run(words))
    alone = run([build / "benchmarks" / "ort-alone", bundle.file("fused.onnx"), bundle.manifest.preprocess.size[0],
                 bundle.manifest.resolve(Keep.parse(keep)), batch, 20, os.cpu_count()])  # fmt: skip
    found, wanted = np.load(cpp), np.load(python)
    names = [json.loads(line) for line in Path(str(cpp.with_suffix("")) + ".paths.jsonl").read_text().splitlines()]
    if names != list(wanted["paths"]):
        raise SystemExit("the two languages embedded different files")
    cosines = (found.astype(np.float64) * wanted["embeddings"].astype(np.float64)).sum(axis=1)
    table = ClassTable.of(bundle) if bundle.manifest.classes else None
    same = None if table is None else float((table.probabilities(found).argmax(1) == table.probabilities(wanted["embeddings"]).argmax(1)).mean())
    rates = {language: statistics.median(ended.images_per_s for ended in runs) for language, runs in both.items()}
    return {
        "keep": keep,
        "images": len(names),
        "worst_cosine": float(cosines.min()),
        "largest_difference": float(np.abs(found - wanted["embeddings"]).max()),
        "same_top1": same,
        "cpp_images_per_s": rates["cpp"],
        "python_images_per_s": rates["python"],
        "ratio": rates["cpp"] / rates["python"],
        "cpp_peak_mib": max(ended.peak_mib for ended in both["cpp"]),
        "python_peak_mib": max(ended.peak_mib for ended in both["python"]),
        "onnxruntime_alone_peak_mib": alone.peak_mib,
    }


@click.command(cls=Script)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--build", type=click.Path(path_type=Path), required=True, help="Build folder of runtime/cpp, with -DPRTOOL_BENCHMARKS=ON.")
@click.option("--keep", "keeps", type=NAMES, default="1.0,0.6,0.4", show_default=True, help="Ratios or counts.")
@click.option("--batch", default=8, show_default=True, help="Images a call.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each language.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write a JSON file.")
def main(bundle: Path, images: tuple[Path, ...], keeps: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Embeds IMAGES (files or folders) in both languages."""
    opened = Bundle.open(bundle)
    locations = opened.manifest.prune.locations
    if len(locations) != 1:
        raise ConfigError(
            f"the bundle has the locations {list(locations)}, but ONNX Runtime alone is given one count; take a bundle with one location"
        )
    for keep in keeps:
        opened.manifest.resolve(Keep.parse(keep))
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(opened, images, keep, options, Path(folder)) for keep in keeps]
    report = {
        "model": opened.manifest.model.name,
        "machine": asdict(this_machine()),
        "versions": library_versions(),
        "batch": options["batch"],
        "rounds": options["rounds"],
        "rows": rows,
    }
    print(json.dumps(report, indent=2))
    if output:
        publish_json(output, report)


if __name__ == "__main__":
    main()
