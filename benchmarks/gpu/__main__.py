"""Everything that is measured on an NVIDIA GPU, in one command; on a CPU a rehearsal of the same code.

python -m benchmarks.gpu                          # all parts; the same command resumes a run that was cut off
python -m benchmarks.gpu --quick --device cpu     # a tiny model and few rounds: shows that it runs, its times mean nothing

Runs from a checkout too. Needs torch, torchvision, timm and open_clip. The part "bundle" also needs onnx, onnxscript and onnxruntime
to make bundles that rank, merge and read smaller images (or --bundle DIR), and takes every further engine that can be imported; the
others are recorded with the reason.
"""

import json
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.clock import Clock
from benchmarks.common import COUNTS, NAMES, Script, Values, named, output_option, word
from benchmarks.gpu.agreement import measure_agreement
from benchmarks.gpu.ranking import measure_ranking
from benchmarks.gpu.record import Record, say
from benchmarks.gpu.speed import SpeedPlan, measure_speed
from benchmarks.gpu.towers import TINY

PARTS = ("speed", "agreement", "ranking", "bundle")
_WORK = Path("runs/gpu")
_LIBRARIES = (
    *("torch", "torchvision", "timm", "open_clip_torch", "triton", "onnx", "onnxscript"),
    *("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"),
)


@click.command(cls=Script)
@click.option("--part", "parts", type=Values("part", word(*PARTS)), default=",".join(PARTS), show_default=True, help="What is measured.")
@click.option("--model", "models", type=NAMES, default="ViT-B-16,ViT-L-14,ViT-L-14-336", show_default=True, help="open_clip architectures.")
@click.option("--precision", "precisions", type=NAMES, default="fp16,bf16", show_default=True, help="Of the towers.")
@click.option(
    "--way", "ways", type=Values("way", word("eager", "compile")), default="eager,compile", show_default=True, help="Each under CUDA graphs."
)
@click.option("--batch", "batches", type=COUNTS, default="1,8,64,256", show_default=True, help="Images a call.")
@click.option("--keep", "ratios", type=NAMES, default="1.0,0.8,0.6,0.5", show_default=True, help="Keep ratios.")
@click.option("--compile-mode", default="default", show_default=True, help="torch.compile's mode, or max-autotune-no-cudagraphs.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="For the part 'bundle'; else bundles of every reducer of the first model are made under runs/gpu.",
)
@click.option("--engine", "engines", type=NAMES, help="For the part 'bundle'.  [default: all but those for CPUs]")
@click.option("--device", default="cuda", show_default=True, help="cpu needs --quick.")
@click.option("--rounds", default=25, show_default=True, help="Timed rounds of each group.")
@click.option("--seconds", default=6.0, show_default=True, help="Time for the rounds of one group.")
@click.option("--minutes", default=600.0, show_default=True, help="Nothing new is started after this time.")
@click.option("--quick", is_flag=True, help="A tiny model, batches 1 and 3, few rounds.")
@output_option
def main(parts: tuple[str, ...], device: str, quick: bool, ratios: tuple[str, ...], **options: Any) -> None:
    """Measures the parts; exit status 1 where a figure failed, 0 where all were measured or their library is missing."""
    place = _device(device, quick)
    if quick:
        options |= {"models": (TINY,), "batches": (1, 3), "rounds": 3, "seconds": 1.0}
    models, precisions, keeps = options["models"], options["precisions"], [float(item) for item in ratios]
    record = _open(place, quick, options)
    clock = Clock(place, options["rounds"], options["seconds"], min_ms=0.1 if quick else 4.0)
    plan = SpeedPlan(models, precisions, options["ways"], options["batches"], keeps, options["compile_mode"])
    work = {
        "speed": lambda: measure_speed(record, plan, clock),
        "agreement": lambda: measure_agreement(record, models, precisions, keeps, place, 4 if quick else 64),
        "ranking": lambda: measure_ranking(record, models, clock, 2 if quick else 32),
        "bundle": lambda: _bundle_part(record, options, clock),
    }
    for part in parts:
        record.whole(part, work[part])
    raise SystemExit(_summary(record))


def _device(name: str, quick: bool) -> torch.device:
    if name == "cpu":
        if not quick:
            raise click.UsageError("--device cpu is a rehearsal; give --quick too")
        return torch.device(name)
    if not torch.cuda.is_available():
        raise click.UsageError("PyTorch finds no CUDA device; check nvidia-smi, or rehearse with --quick --device cpu")
    device = torch.device("cuda", torch.device(name).index or 0)  # set_device takes a numbered device only
    torch.cuda.set_device(device)
    return device


def _bundle_part(record: Record, options: dict[str, Any], clock: Clock) -> None:
    # Here, because an engine's libraries may be missing while everything else runs.
    from benchmarks.gpu.bundles import gpu_engines, make_bundles, measure_bundle

    engines = options["engines"] or gpu_engines()
    precision, model, batches = options["precisions"][0], options["models"][0], options["batches"]
    if options["bundle"] is None and model == TINY:
        say("the part 'bundle' is left out: open_clip has no dual encoder with the tiny tower; give --bundle")
        return
    made = [str(options["bundle"])] if options["bundle"] else make_bundles(model, _WORK, ("fp32", precision))
    for path in made:
        measure_bundle(record, Path(path), engines, batches, precision, clock)


def _open(device: torch.device, quick: bool, options: dict[str, Any]) -> Record:
    """The record of this device, with what an earlier run measured."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    rehearsal = quick or not on_gpu
    path = options["output"] or named(None, "gpu", *(("rehearsal",) if rehearsal else ()), name).with_suffix(".json")
    facts: dict[str, Any] = {
        "rehearsal": rehearsal,
        "device": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {library: _version(library) for library in _LIBRARIES},
        "cuda": _cuda_facts(device) if on_gpu else None,
        "timing": {"rounds": options["rounds"], "seconds": options["seconds"], "clock": "CUDA events" if on_gpu else "host"},
        "compile_mode": options["compile_mode"],
    }
    if rehearsal:
        facts["note"] = "A rehearsal: it shows that the code runs. Its times mean nothing."
        say(facts["note"])
    record = Record(path, facts, time.monotonic() + 60 * options["minutes"])
    if path.exists():
        earlier = json.loads(path.read_text())
        if (earlier["device"], earlier["rehearsal"]) != (name, rehearsal):
            raise click.UsageError(f"{path} is of {earlier['device']}, and this is {name}; give another -o")
        record.parts = earlier["parts"]
    record.write()
    return record


def _cuda_facts(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "runtime": torch.version.cuda,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _summary(record: Record) -> int:
    """The figures that targets are set for, on stdout; the exit status."""
    for name, entry in record.parts.get("speed", {}).items():
        if entry["state"] != "done":
            continue
        for row in entry["result"]["rows"][1:]:
            # Records of earlier versions call the theoretical speed-up "bound".
            share = row.get("share_of_theoretical", row.get("share_of_bound"))
            print(f"{name}, keep {row['keep']}: {row['median_ms']:.3f} ms, {row['speedup']:.2f}x = {share:.2f} of the theoretical speed-up")
        if "parts" in entry["result"]:
            print(f"{name}, keep {entry['result']['parts']['keep']}: chain / sum of its parts = {entry['result']['parts']['chain_over_sum']:.3f}")
    failed = [
        f"{part}: {name}: {entry['error']}" for part, found in record.parts.items() for name, entry in found.items() if entry["state"] != "done"
    ]
    for line in failed:
        print(f"failed: {line}"[:300])
    print(f"written to {record.path}")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
