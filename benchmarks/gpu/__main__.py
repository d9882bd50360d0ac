"""Everything that is measured on an NVIDIA GPU, in one command; on a CPU a rehearsal of the same code.

python benchmarks/gpu.py                          # all parts; the same command again goes on where a run was cut off
python benchmarks/gpu.py --quick --device cpu     # a tiny model and few rounds: shows that it runs, its times mean nothing

Needs torch, torchvision, timm and open_clip. The part "bundle" also needs prtool installed, and onnx, onnxscript and
onnxruntime to make a bundle (or --bundle DIR), and takes every further engine that can be imported; what cannot is recorded with its reason.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Runs from a plain checkout too: the links in prtool/ make it importable.
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from on_gpu.agreement import measure_agreement  # noqa: E402
from on_gpu.clock import Clock  # noqa: E402
from on_gpu.ranking import measure_ranking  # noqa: E402
from on_gpu.record import Record, say  # noqa: E402
from on_gpu.speed import SpeedPlan, measure_speed  # noqa: E402
from on_gpu.towers import TINY  # noqa: E402

PARTS = ("speed", "agreement", "ranking", "bundle")
_LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "triton",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--models", default="ViT-B-16,ViT-L-14,ViT-L-14-336", help="open_clip architectures (default %(default)s)")
    parser.add_argument("--precisions", default="fp16,bf16", help="default %(default)s")
    parser.add_argument("--ways", default="eager,compile", help="default %(default)s; each under CUDA graphs")
    parser.add_argument("--batches", default="1,8,64,256", help="default %(default)s")
    parser.add_argument("--keeps", default="1.0,0.8,0.6,0.5", help="ratios (default %(default)s)")
    parser.add_argument("--compile-mode", default="default", help="torch.compile's mode, or max-autotune-no-cudagraphs (default %(default)s)")
    parser.add_argument("--bundle", type=Path, help="bundle for the part 'bundle'; made of the first model if absent")
    parser.add_argument("--engines", help="for the part 'bundle' (default: all but those for CPUs)")
    parser.add_argument("--device", default="cuda", help="default %(default)s; cpu needs --quick")
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds of each group (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="most time for the rounds of one group (s, default %(default)s)")
    parser.add_argument("--minutes", type=float, default=600.0, help="start nothing new after this time (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, batches 1 and 3, few rounds")
    parser.add_argument("-o", "--output", type=Path, help="JSON file (default benchmarks/results/gpu-DEVICE.json)")
    chosen = parser.parse_args()
    unknown = set(chosen.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--parts {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; check nvidia-smi, or rehearse with --quick --device cpu")
    if chosen.device == "cpu" and not chosen.quick:
        parser.error("--device cpu is a rehearsal; give --quick too")
    return chosen


def main() -> int:
    """Runs the parts; 0 when every figure was measured or its library is missing, 1 when some failed."""
    chosen = arguments()
    if chosen.quick:
        chosen.models, chosen.batches, chosen.rounds, chosen.seconds = TINY, "1,3", 3, 1.0
    device = torch.device(chosen.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # set_device takes a numbered device only
        torch.cuda.set_device(device)
    record = _open(chosen, device)
    clock = Clock(device, chosen.rounds, chosen.seconds, least_ms=0.1 if chosen.quick else 4.0)
    models, precisions = chosen.models.split(","), chosen.precisions.split(",")
    keeps, batches = [float(item) for item in chosen.keeps.split(",")], [int(item) for item in chosen.batches.split(",")]
    plan = SpeedPlan(models, precisions, chosen.ways.split(","), batches, keeps, chosen.compile_mode)
    parts: dict[str, Callable[[], None]] = {
        "speed": lambda: measure_speed(record, plan, clock),
        "agreement": lambda: measure_agreement(record, models, precisions, keeps, device, 4 if chosen.quick else 64),
        "ranking": lambda: measure_ranking(record, models, clock, 2 if chosen.quick else 32),
        "bundle": lambda: _bundle_part(record, chosen, clock, batches),
    }
    for part in chosen.parts.split(","):
        record.whole(part, parts[part])
    return _summary(record)


def _bundle_part(record: Record, chosen: argparse.Namespace, clock: Clock, batches: list[int]) -> None:
    # Here, because an engine's libraries may be missing while everything else runs.
    from on_gpu.bundles import export, gpu_engines, is_exportable, measure_bundle

    engines = chosen.engines.split(",") if chosen.engines else gpu_engines()
    precision, model = chosen.precisions.split(",")[0], chosen.models.split(",")[0]
    if chosen.bundle is not None:
        measure_bundle(record, chosen.bundle, engines, batches, precision, clock)
    elif is_exportable(model):
        with tempfile.TemporaryDirectory(prefix="prtool-gpu-") as folder:
            path = record.measure("export", f"{model} {precision}", lambda: str(export(model, Path(folder), ("fp32", precision))))
            if path is not None and Path(path).exists():
                measure_bundle(record, Path(path), engines, batches, precision, clock)
    else:
        say("the part 'bundle' is left out: the tiny model makes none; give --bundle")


def _open(chosen: argparse.Namespace, device: torch.device) -> Record:
    """The record of this device, with what an earlier run measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    rehearsal = device.type != "cuda" or chosen.quick
    slug = re.sub(r"[^a-z0-9]+", "-", f"{'rehearsal ' if rehearsal else ''}{name}".lower()).strip("-")
    path = chosen.output or ROOT / "benchmarks" / "results" / f"gpu-{slug}.json"
    facts: dict[str, Any] = {
        "rehearsal": rehearsal,
        "device": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {library: _version(library) for library in _LIBRARIES},
        "cuda": _cuda_facts(device),
        "timing": {"rounds": chosen.rounds, "seconds": chosen.seconds, "clock": "CUDA events" if device.type == "cuda" else "host"},
        "compile_mode": chosen.compile_mode,
    }
    if rehearsal:
        facts["note"] = "A rehearsal: it shows that the code runs. Its times mean nothing."
        say(facts["note"])
    record = Record(path, facts, time.monotonic() + 60 * chosen.minutes)
    if path.exists():
        earlier = json.loads(path.read_text())
        if (earlier["device"], earlier["rehearsal"]) != (name, rehearsal):
            raise SystemExit(f"{path} is of {earlier['device']}, and this is {name}; give another -o")
        record.parts = earlier["parts"]
    record.write()
    return record


def _cuda_facts(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
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
    """The figures that targets are set for, on stdout."""
    for name, entry in record.parts.get("speed", {}).items():
        if entry["state"] != "done":
            continue
        for row in entry["result"]["rows"][1:]:
            print(f"{name}, keep {row['keep']}: {row['median_ms']:.3f} ms, {row['speedup']:.2f}x = {row['share_of_bound']:.2f} of the bound")
        if "parts" in entry["result"]:
            print(f"{name}, keep {entry['result']['parts']['keep']}: chain / sum of its parts = {entry['result']['parts']['chain_over_sum']:.3f}")
    failed = [
        f"{part}: {name}: {entry['error']}" for part, entries in record.parts.items() for name, entry in entries.items() if entry["state"] != "done"
    ]
    for line in failed:
        print(f"failed: {line}"[:300])
    print(f"written to {record.path}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
