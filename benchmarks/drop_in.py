"""`encode_image` of open_clip before and after `prtool.apply`, in one interleaved run: time next to the multiply-accumulates.

python -m benchmarks.drop_in RUN RUN --keep 0.5,0.3
"""

import platform
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import prtool
from benchmarks.clock import Clock, compared
from benchmarks.common import KEEPS, Script, named, output_option, publish_json, show
from prtool.errors import ConfigError
from prtool.pictures import short_name
from prtool.spec import Keep
from prtool.trainer.runs.checkpoint import Checkpoint


@click.command(cls=Script, help=__doc__)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--keep", "keeps", type=KEEPS, default="0.6", show_default=True, help="Patches that stay: ratios or counts.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images a call.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Time limit.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@output_option
def main(runs: tuple[Path, ...], keeps: tuple[Keep, ...], batch: int, seconds: float, device: str, output: Path | None) -> None:
    """Times the host's own call, in full and with each run and keep."""
    first = Checkpoint.load(runs[0])
    side, works, bounds = _host(first, device).visual.image_size, {}, {"open_clip": 1.0}
    works["open_clip"] = _work(_host(first, device), batch, side, device)
    for run in runs:
        checkpoint = Checkpoint.load(run)
        if checkpoint.weights_sha256 != first.weights_sha256:
            raise ConfigError(f"{run} was trained for another model than {runs[0]}; give runs of one model")
        cost = checkpoint.load_model().tower.cost()
        for keep in keeps if checkpoint.prune.locations else (Keep.ratio(1.0),):
            model = prtool.apply(_host(checkpoint, device), run, keep)
            counts, pixels = checkpoint.prune.counts(keep), model.visual.image_size
            name = f"{checkpoint.prune.method}, {pixels[0]} px, {keep.resolve(checkpoint.prune.patches)} of {checkpoint.prune.patches} patches"
            works[name], bounds[name] = _work(model, batch, pixels, device), cost.theoretical_speedup(checkpoint.prune, counts)
    with torch.inference_mode():
        times = Clock(torch.device(device), rounds=60, seconds=seconds).interleaved(works)
    rows = {name: compared(times["open_clip"], times[name], bounds[name]) for name in works}
    facts = {"model": short_name(first.model), "batch": batch, "device": device, "threads": torch.get_num_threads(), "cpu": platform.processor()}
    file = publish_json(named(output, "drop-in", short_name(first.model), device), {**facts, "torch": torch.__version__, "rows": rows})
    cells = [[name, f"{row['median_ms']:.1f}", f"{row['speedup']:.2f}", f"{row['theoretical_speedup']:.2f}"] for name, row in rows.items()]
    show((["encode_image", "ms", "speed-up", "theoretical"], cells), f"batch {batch}, {device}", (), (file,))


def _host(checkpoint: Checkpoint, device: str) -> Any:
    import open_clip

    return open_clip.create_model(checkpoint.model, checkpoint.pretrained or None, device=device).eval()


def _work(model: nn.Module, batch: int, size: tuple[int, int], device: str) -> Any:
    pixels = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    return lambda: model.encode_image(pixels)  # type: ignore[operator]


if __name__ == "__main__":
    main()
