"""Where an OpenVINO call spends its time, by kind of operator, compared with the peak rate of the processor.

python -m benchmarks.profile_openvino runs/b16/bundle --precision int8 --keep 0.5 --batch 8

The peak is measured, not looked up: a square product of the same precision, large enough to keep every core busy.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import openvino as ov

from benchmarks.common import Script, named, output_option, publish_json, show
from prtool.bundle import Bundle
from prtool.cpus import granted_cpus
from prtool.engines.base import Array, GraphOptions
from prtool.engines.ov.engine import open_graph
from prtool.engines.ov.graph import core
from prtool.engines.registry import graph_precision
from prtool.pictures import short_name
from prtool.runtime.machine import library_versions, this_machine
from prtool.spec import Keep

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_ROUNDS = 7


def operators(bundle: Bundle, precision: str, feed: dict[str, Array]) -> dict[str, float]:
    """Kind of operator -> milliseconds of one call, the median over some calls."""
    graph = bundle.graph("fused", graph_precision("openvino", precision))
    settings = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "INFERENCE_NUM_THREADS": granted_cpus(), "PERF_COUNT": True}
    request = core().compile_model(core().read_model(bundle.file(graph.file)), "CPU", settings).create_infer_request()
    spent: dict[str, list[float]] = defaultdict(list)
    for call in range(_ROUNDS + 1):
        request.infer(feed, share_inputs=True)
        found: dict[str, float] = defaultdict(float)
        for step in request.get_profiling_info():
            found[f"{step.node_type} {step.exec_type}"] += step.real_time.total_seconds() * 1e3
        for name, milliseconds in found.items() if call else ():
            spent[name].append(milliseconds)
    return {name: float(np.median(values)) for name, values in spent.items()}


def peak_gmacs(precision: str, size: int = 3072) -> float:
    """10^9 multiply-accumulates a second of one large product in this precision, as OpenVINO runs it."""
    rng = np.random.default_rng(0)
    rows = ov.opset13.parameter([size, size], np.float32, name="rows")
    weights: ov.Node = ov.opset13.constant(rng.standard_normal((size, size)).astype(np.float32))
    given: ov.Node = rows.output(0).get_node()
    if precision == "int8":
        low, high = ov.opset13.constant(np.float32(-4.0)), ov.opset13.constant(np.float32(4.0))
        given = ov.opset13.fake_quantize(given, low, high, low, high, 256)
        weights = ov.opset13.fake_quantize(weights, low, high, low, high, 255)
    product = ov.opset13.matmul(given, weights, False, True)
    settings = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "INFERENCE_NUM_THREADS": granted_cpus()}
    request = core().compile_model(ov.Model([product], [rows]), "CPU", settings).create_infer_request()
    values = rng.standard_normal((size, size)).astype(np.float32)
    return size**3 / 1e6 / _median_ms(lambda: request.infer([values], share_inputs=True))


def _median_ms(call: Callable[[], object]) -> float:
    """Milliseconds of a call, the median."""
    spent = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        call()
        spent.append(1e3 * (time.perf_counter() - started))
    return float(np.median(spent[1:]))


@click.command(cls=Script)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", default="int8", show_default=True, type=click.Choice(list(_HINTS)), help="As `prtool bench --engine openvino`.")
@click.option("--keep", default="0.6", show_default=True, help="Ratio or count of patches.")
@click.option("--batch", default=8, show_default=True, help="Images a call.")
@output_option
def main(bundle: Path, precision: str, keep: str, batch: int, output: Path | None) -> None:
    """Profiles the fused graph of BUNDLE in OpenVINO."""
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    counts = manifest.counts(Keep.parse(keep))
    pixels = np.random.default_rng(0).standard_normal((batch, 3, *manifest.preprocess.size)).astype(np.float32)
    feed: dict[str, Array] = {"pixels": pixels, **({"k": np.array(counts, np.int64)} if counts else {})}
    graph = opened.graph("fused", graph_precision("openvino", precision))
    engine = open_graph(opened.file(graph.file), graph.inputs, GraphOptions(precision=precision))
    spent, whole, peak = operators(opened, precision, feed), _median_ms(lambda: engine.run(feed)), peak_gmacs(precision)
    gmacs = batch * manifest.cost.pruned_gmacs(manifest.prune, counts)
    rows = sorted(spent.items(), key=lambda item: -item[1])
    report = {
        "what": "milliseconds of one call of the fused graph in OpenVINO, by kind of operator (with counters on), and as users call it",
        "model": manifest.model.name,
        "precision": precision,
        "batch": batch,
        "method": manifest.prune.method,
        "image_size": manifest.preprocess.size,
        "k": manifest.patches_kept("fused", counts),
        "call_ms": round(whole, 2),
        "gmacs": round(gmacs, 2),
        "peak_gmacs_per_s": round(peak, 1),
        "min_ms_at_peak": round(1e3 * gmacs / peak, 2),
        "operators_ms": {name: round(value, 3) for name, value in rows},
        "cpu": this_machine().cpu,
        "versions": library_versions() | {"openvino": engine.info.version},
    }
    file = publish_json(named(output, "profile", short_name(manifest.model.name), "openvino", precision), report)
    cells = [[name, f"{value:.1f}"] for name, value in rows if value >= 0.5]
    title = f"{whole:.0f} ms a call; {gmacs:.0f} GMAC take {1e3 * gmacs / peak:.0f} ms at the measured peak of {peak:.0f} GMAC/s"
    show((["operator", "ms"], cells), title, (), [file])


if __name__ == "__main__":
    main()
