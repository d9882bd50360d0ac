"""Measures the golden ranking beside its bound: a plain batched forward over the same blocks and token counts.

python benchmarks/golden.py --model local-dir:MODEL --data DATA --images 8
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from results_file import in_one_line, named, publish_json, show
from torch import Tensor
from torch.nn import functional

from prtool.cli.console import BarProgress
from prtool.progress import Progress, stage
from prtool.runtime.machine import library_versions, this_machine
from prtool.trainer.data.load import ImageSet, load_split, pixel_batches
from prtool.trainer.models.dual_encoder import DualEncoder, load_model
from prtool.trainer.objectives.golden import GoldenConfig, GoldenSearch
from prtool.trainer.objectives.golden_store import rank_images

CPU_BATCHES = (8, 16, 32)
GPU_BATCHES = (64, 128, 256)
PROBES = 2

Forward = Callable[[Tensor], Tensor]


class Bound:
    """The fastest plain forward over the blocks behind the location that this machine was found to run.

    Nothing is gathered, scored or sorted: whole batches of ready tokens run again and again. Each batch size is tried
    with the search's own tail and, in bf16, with autocast over the untouched tower.
    """

    def __init__(self, search: GoldenSearch, tokens: Tensor) -> None:
        self.device = tokens.device
        groups = search.members.sum(1).tolist()
        whole = tokens.shape[1]
        # Token counts of the sequences that one image needs: one for each group left out, and the unpruned one.
        self.lengths = Counter([whole, *(whole - size for size in groups)])
        self.sequences = sum(self.lengths.values())
        self.tokens = tokens
        self.made: dict[tuple[int, int], Tensor] = {}
        self.name, self.forward, self.batch = self._fastest(self._forwards(search))

    def run(self, images: int) -> None:
        """As many sequences of the same lengths as ranking `images` images takes."""
        for length, count in self.lengths.items():
            missing = count * images
            while missing > 0:
                part = self._ready(min(self.batch, missing), length)
                self.forward(part)
                missing -= len(part)

    def _forwards(self, search: GoldenSearch) -> dict[str, Forward]:
        tower, device = search.model.tower, self.device.type

        @torch.no_grad()
        def autocast(tokens: Tensor) -> Tensor:
            with torch.autocast(device, torch.bfloat16):
                through = tower.run_blocks(tokens, search.location, tower.depth)
            return functional.normalize(tower.head(through.float()), dim=-1)

        own: dict[str, Forward] = {"tail": search.tail.embed}
        return own if search.tail.precision == "fp32" else {**own, "autocast": autocast}

    def _fastest(self, forwards: dict[str, Forward]) -> tuple[str, Forward, int]:
        length = self.lengths.most_common(1)[0][0]
        batches = CPU_BATCHES if self.device.type == "cpu" else GPU_BATCHES
        cases = [(name, forward, batch) for name, forward in forwards.items() for batch in batches]
        found: list[list[float]] = [[] for _ in cases]
        for _ in range(1 + PROBES):
            for seconds, (_, forward, batch) in zip(found, cases, strict=True):
                work = partial(forward, self._ready(batch, length))
                seconds.append(timed(work, self.device) / batch)
        return cases[min(range(len(cases)), key=lambda i: median(found[i][1:]))]

    def _ready(self, batch: int, length: int) -> Tensor:
        """A contiguous batch of this many sequences of this length; made once."""
        if (batch, length) not in self.made:
            copies = -(-batch // len(self.tokens))
            self.made[batch, length] = self.tokens.repeat(copies, 1, 1)[:batch, :length].contiguous()
        return self.made[batch, length]


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the work takes, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(model: DualEncoder, images: ImageSet, location: int, config: GoldenConfig, rounds: int, progress: Progress) -> dict[str, Any]:
    """Interleaved rounds of the whole ranking, the search alone and the plain forward; figures are medians."""
    search = GoldenSearch(model, location, config)
    device = search.tail.device
    with torch.no_grad():
        pixels = next(pixel_batches(images, model.preprocess, range(len(images)), len(images)))[1]
        tokens = model.tower.run_pre(pixels.to(device), location)
    bound = Bound(search, tokens)
    works: dict[str, Callable[[], object]] = {
        "ranking": lambda: rank_images(search, images, None),
        "search": lambda: search.rank(tokens),
        "bound": lambda: bound.run(len(images)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    with stage(progress, "timing (rounds)", rounds + 1):
        for round_ in range(rounds + 1):
            # The order turns each round, so that what runs directly after what is not always the same.
            for name in list(works)[round_ % 3 :] + list(works)[: round_ % 3]:
                seconds[name].append(timed(works[name], device))
            progress.advance()
    kept = {name: values[1:] for name, values in seconds.items()}
    rows = [
        {
            "what": name,
            "images_per_s": len(images) / median(values),
            "sequences_per_s": bound.sequences * len(images) / median(values),
            "share_of_bound": median(b / v for b, v in zip(kept["bound"], values, strict=True)),
            "seconds": values,
        }
        for name, values in kept.items()
    ]
    return {
        "precision": search.tail.precision,
        "sequences_per_image": bound.sequences,
        "plain_forward": {"kind": bound.name, "batch": bound.batch},
        "rows": rows,
    }


@click.command()
@click.option("--model", default="ViT-B-16", show_default=True, help="Model name as open_clip takes it, or local-dir:PATH.")
@click.option("--pretrained", default="", help="Pretrained tag or checkpoint file; random weights if absent.")
@click.option("--data", required=True, help="Data folder; its train part is ranked.")
@click.option("--images", "count", default=8, show_default=True, help="Images ranked in each round.")
@click.option("--location", default=4, show_default=True, help="Block on entry to which patches are left out, from 1.")
@click.option("--group", default=2, show_default=True, help="Side of the squares of patches left out together.")
@click.option("--precision", default="auto", show_default=True, help="fp32, bf16 or auto.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--rounds", default=5, show_default=True, help="Timed rounds, after one that does not count.")
@click.option("--threads", default=0, show_default=True, help="CPU threads; 0 leaves torch's own number.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="JSON file; named after the model if absent.")
def main(**options: object) -> None:
    """Ranks a few images again and again, beside a plain forward of as many sequences."""
    in_one_line(_run, options)


def _run(options: dict[str, object]) -> None:
    if threads := int(str(options["threads"])):
        torch.set_num_threads(threads)
    machine = this_machine()
    config = GoldenConfig(group=int(str(options["group"])), precision=str(options["precision"]))
    images = load_split(str(options["data"]), "train").take(int(str(options["count"])))
    model = load_model(str(options["model"]), str(options["pretrained"]), str(options["device"]))
    location = int(str(options["location"]))
    found = measure(model, images, location, config, int(str(options["rounds"])), BarProgress())
    device = torch.cuda.get_device_name() if options["device"] == "cuda" else f"{machine.cpu}, {torch.get_num_threads()} threads"
    report = {
        "model": Path(model.name).name,
        "device": device,
        "machine": asdict(machine),
        "versions": {**library_versions(), "torch": torch.__version__},
        "location": location,
        "config": asdict(config),
        "images": len(images),
        **found,
    }
    file = publish_json(named(options["output"], "golden", report["model"], options["device"], report["precision"]), report)
    rows = [[row["what"], f"{row['images_per_s']:.2f}", f"{row['sequences_per_s']:.1f}", f"{row['share_of_bound']:.3f}"] for row in found["rows"]]
    plain = found["plain_forward"]
    title = f"{report['model']} in {report['precision']}, {config.group} x {config.group} groups on entry to block {location}, on {device}"
    notes = [f"bound = plain forward ({plain['kind']}, {plain['batch']} sequences a batch); ranking = search + decoding and the blocks before"]
    if machine.load_average and machine.load_average > 1.0:
        notes.append(f"the load was {machine.load_average} before the measurement: other jobs ran, and the rates are lower than the machine's")
    show((["what", "images/s", "sequences/s", "share of bound"], rows), title, notes, (file,))


if __name__ == "__main__":
    main()
