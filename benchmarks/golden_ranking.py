"""Speed of the golden ranking, compared with a plain batched forward over the same blocks and token counts.

python -m benchmarks.golden_ranking --model local-dir:MODEL --data DATA --images 8
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.clock import Clock, Work
from benchmarks.common import Script, named, output_option, publish_json, show
from prtool.cli.console import BarProgress
from prtool.progress import Progress
from prtool.runtime.machine import library_versions, this_machine
from prtool.trainer.data.load import load_split, pixel_batches
from prtool.trainer.models.dual_encoder import load_model
from prtool.trainer.objectives.golden import GoldenConfig, GoldenSearch
from prtool.trainer.objectives.golden_store import rank_images

BATCHES = {"cpu": (8, 16, 32), "cuda": (64, 128, 256, 512)}
Forward = Callable[[Tensor], Tensor]


class PlainForward:
    """The fastest plain forward over the blocks behind the location that this machine was found to run.

    Nothing is gathered, scored or sorted: whole batches of ready tokens run again and again. Each batch size is tried
    with the search's own tail and, in bf16, with autocast over the untouched tower.
    """

    def __init__(self, search: GoldenSearch, tokens: Tensor, clock: Clock) -> None:
        whole = tokens.shape[1]
        # Token counts of the sequences that one image needs: one for each group left out, and the unpruned one.
        self.lengths = Counter([whole, *(whole - size for size in search.members.sum(1).tolist())])
        self.sequences, self.tokens = sum(self.lengths.values()), tokens
        self.made: dict[tuple[int, int], Tensor] = {}
        length, sizes = self.lengths.most_common(1)[0][0], BATCHES[tokens.device.type]
        cases = [
            (name, forward, batch)
            for name, forward in _forwards(search).items()
            for batch in sizes
            if batch <= max(sizes[0], self.sequences * len(tokens))
        ]
        works: dict[str, Work] = {f"{name} {batch}": partial(forward, self._ready(batch, length)) for name, forward, batch in cases}
        found = Clock(clock.device, rounds=3, seconds=clock.seconds, min_ms=clock.min_ms).interleaved(works)
        self.name, self.forward, self.batch = min(cases, key=lambda case: median(found[f"{case[0]} {case[2]}"]) / case[2])

    def run(self) -> None:
        """As many sequences of the same lengths as ranking every image takes."""
        for length, count in self.lengths.items():
            missing = count * len(self.tokens)
            while missing > 0:
                part = self._ready(min(self.batch, missing), length)
                self.forward(part)
                missing -= len(part)

    def _ready(self, batch: int, length: int) -> Tensor:
        """A contiguous batch of this many sequences of this length; made once."""
        if (batch, length) not in self.made:
            copies = -(-batch // len(self.tokens))
            self.made[batch, length] = self.tokens.repeat(copies, 1, 1)[:batch, :length].contiguous()
        return self.made[batch, length]


def _forwards(search: GoldenSearch) -> dict[str, Forward]:
    tower, device = search.model.tower, search.tail.device.type

    @torch.no_grad()
    def autocast(tokens: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            through = tower.run_blocks(tokens, search.location, tower.depth)
        return functional.normalize(tower.head(through.float()), dim=-1)

    own: dict[str, Forward] = {"tail": search.tail.embed}
    return own if search.tail.precision == "fp32" else {**own, "autocast": autocast}


def measure(
    search: GoldenSearch, tokens: Tensor, clock: Clock, more: dict[str, Work] | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Interleaved rounds of the search, the plain forward and what else is given; figures are medians.

    Args:
        search: on the clock's device.
        tokens: (images, tokens, D) that enter the location.
        clock: how they are timed.
        more: further work on the same images, by name.
        progress: advanced once per call.
    """
    with torch.no_grad():
        plain = PlainForward(search, tokens, clock)
        times = clock.interleaved({**(more or {}), "search": lambda: search.rank(tokens), "plain": plain.run}, progress)
    rows = [
        {
            "what": name,
            "images_per_s": 1e3 * len(tokens) / median(values),
            "sequences_per_s": 1e3 * plain.sequences * len(tokens) / median(values),
            "share_of_plain": median(b / v for b, v in zip(times["plain"], values, strict=True)),
            "seconds": [value / 1e3 for value in values],
        }
        for name, values in times.items()
    ]
    return {
        "precision": search.tail.precision,
        "images": len(tokens),
        "sequences_per_image": plain.sequences,
        "plain_forward": {"kind": plain.name, "batch": plain.batch},
        "rows": rows,
    }


@click.command(cls=Script)
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
@output_option
def main(data: str, count: int, location: int, rounds: int, threads: int, output: Path | None, **options: Any) -> None:
    """Ranks a few images repeatedly, next to a plain forward of as many sequences."""
    if threads:
        torch.set_num_threads(threads)
    machine, progress = this_machine(), BarProgress()
    config = GoldenConfig(group=options["group"], precision=options["precision"])
    images = load_split(data, "train").take(count)
    model = load_model(options["model"], options["pretrained"], options["device"])
    search = GoldenSearch(model, location, config)
    with torch.no_grad():
        pixels = next(pixel_batches(images, model.preprocess, range(len(images)), len(images)))[1]
        tokens = model.tower.run_pre(pixels.to(search.tail.device), location)
    clock = Clock(search.tail.device, rounds, math.inf, min_ms=0.0)
    found = measure(search, tokens, clock, {"ranking": lambda: rank_images(search, images, None)}, progress)
    name = Path(model.name).name
    device = torch.cuda.get_device_name() if options["device"] == "cuda" else f"{machine.cpu}, {torch.get_num_threads()} threads"
    report = {"model": name, "device": device, "machine": asdict(machine), "versions": {**library_versions(), "torch": torch.__version__}}
    report |= {"location": location, "config": asdict(config), **found}
    file = publish_json(named(output, "golden", name, options["device"], found["precision"]), report)
    rows = [[row["what"], f"{row['images_per_s']:.2f}", f"{row['sequences_per_s']:.1f}", f"{row['share_of_plain']:.3f}"] for row in found["rows"]]
    plain = found["plain_forward"]
    title = f"{name} in {found['precision']}, {config.group} x {config.group} groups on entry to block {location}, on {device}"
    notes = [f"plain = plain forward ({plain['kind']}, {plain['batch']} sequences a batch); ranking = search + decoding and the blocks before"]
    if machine.load_average and machine.load_average > 1.0:
        notes.append(f"the load average was {machine.load_average} before the measurement: other jobs ran, so the rates are too low")
    show((["what", "images/s", "sequences/s", "share of plain"], rows), title, notes, (file,))


if __name__ == "__main__":
    main()
