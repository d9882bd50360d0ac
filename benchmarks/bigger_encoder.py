"""A bigger encoder at the old price: a small encoder in full next to a bigger one, shortened to the same multiply-accumulates, in one run.

    python -m benchmarks.bigger_encoder --engine ort,openvino

ViT-B/16 in full against ViT-L/14 by every reducer that reaches its cost; random weights show the speed, which is all that is measured
here. Bundles are made under --work (a few GB), and a second call uses them again. The result is benchmarks/results/bigger-BIGGER.json.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.common import NAMES, Script, Table, named, publish_json, show
from benchmarks.race import SCOPES, Entrant, check_memory, figures, of_scope, race
from benchmarks.reducers import REDUCERS, Reducer, Workshop, check_some, keeps_of
from prtool.bundle import Bundle
from prtool.cli.console import BarProgress
from prtool.engines.base import EngineOptions
from prtool.engines.registry import ENGINES
from prtool.errors import ConfigError
from prtool.pictures import short_name
from prtool.runtime.bench.inputs import sample_photos
from prtool.runtime.bench.timing import Plan, Samples
from prtool.runtime.encoder import Encoder
from prtool.runtime.machine import library_versions, this_machine
from prtool.spec import NONE
from prtool.trainer.models.tower import VisionTower

SCHEMA = 1
_PHOTOS = 16
_CPU_ENGINES = ",".join(name for name in ("ort", "openvino") if name in ENGINES)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One encoder of the table: a bundle in a mode, with k patches left; None for an encoder in full."""

    model: str
    reducer: Reducer | None
    bundle: Bundle
    k: int | None

    @property
    def gmacs(self) -> float:
        """Cost of one image in 10^9 MAC."""
        manifest = self.bundle.manifest
        full = manifest.cost.full_gmacs(manifest.prune)
        return full if self.k is None else full / manifest.theoretical_speedup(self.k)

    @property
    def mode(self) -> str:
        """Of the bundle."""
        return "full" if self.k is None else "fused"

    def facts(self, first: "Row") -> dict[str, Any]:
        """What does not come from a clock; `first` is the small encoder."""
        size = self.bundle.manifest.preprocess_for(self.mode).size[0]
        shortened = "in full" if self.reducer is None else str(self.reducer)
        return {
            "model": self.model,
            "reducer": shortened,
            "image_size": size,
            "k": self.k,
            "gmacs": self.gmacs,
            "share_of_small": self.gmacs / first.gmacs,
        }


def rows_of(small: Workshop, bigger: Workshop, reducers: Sequence[Reducer], precision: str) -> list[Row]:
    """The small encoder in full, the bigger one in full, and by each reducer that reaches the small one's cost within 5 % of its own.

    Raises:
        ConfigError: the bigger encoder costs no more, or no reducer reaches that cost.
    """
    plain = small.bundle(_barely_smaller(small.tower()), (precision,))
    bundles = {reducer: bigger.bundle(reducer, (precision,)) for reducer in _with_size(reducers, bigger.tower(), plain)}
    first = Row(short_name(small.model), None, plain, None)
    whole = Row(short_name(bigger.model), None, next(iter(bundles.values())), None)
    share = first.gmacs / whole.gmacs
    if share >= 1.0:
        raise ConfigError(f"{bigger.model} costs {whole.gmacs:.1f} GMAC and {small.model} {first.gmacs:.1f}; give a bigger encoder")
    found = {reducer: keeps_of(bundle.manifest, (share,)).get(share) for reducer, bundle in bundles.items()}
    reached = [Row(whole.model, reducer, bundles[reducer], k) for reducer, k in found.items() if k is not None]
    check_some(reached, tuple(found), (share,))
    return [first, whole, *reached]


def measured(
    rows: Sequence[Row], engines: Sequence[str], how: EngineOptions, plan: Plan, work: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], int]:
    """Each row on each engine, and the number of rounds; `work` names batch, precision, seed and progress."""
    images = sample_photos(_PHOTOS, work["seed"])
    with contextlib.ExitStack() as stack:
        groups = [[_entrant(row, engine, how, work["precision"], stack) for row in rows] for engine in engines]
        samples = race(groups, images, work["batch"], plan, work["progress"])
    found = [
        {"engine": engine, **row.facts(rows[0]), **_times(taken, of_engine[0], work["batch"])}
        for engine, of_engine in zip(engines, samples, strict=True)
        for row, taken in zip(rows, of_engine, strict=True)
    ]
    return found, len(samples[0][0].total_ns)


def _times(case: Samples, first: Samples, batch: int) -> dict[str, Any]:
    """Scope -> figures; "speedup" is over the small encoder in full, on the same engine in the same rounds."""
    return {scope: figures(of_scope(case, scope), of_scope(first, scope), batch) for scope in SCOPES}


def _entrant(row: Row, engine: str, how: EngineOptions, precision: str, stack: contextlib.ExitStack) -> Entrant:
    encoder = Encoder.load(row.bundle, engine=engine, mode=row.mode, precision=precision, options=how, verify=False)
    return Entrant.of(stack.enter_context(encoder), row.bundle.manifest, row.mode, row.k)


def _barely_smaller(tower: VisionTower) -> Reducer:
    """A reducer that trains nothing and suits every tower: only the unpruned graph of its bundle runs."""
    return Reducer(NONE, tower.smaller_sizes[-1])


def _with_size(reducers: Sequence[Reducer], tower: VisionTower, plain: Bundle) -> list[Reducer]:
    """The reducers; for "none" alone the image size whose cost is nearest to the small encoder's."""
    wanted = plain.manifest.cost.full_gmacs(plain.manifest.prune)
    nearest = Reducer(NONE, min(tower.smaller_sizes, key=lambda side: abs(tower.gmacs_at(side) - wanted)))
    return [nearest if reducer == Reducer(NONE) else reducer for reducer in reducers]


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["engine", "model", "shortened by", "px", "patches", "GMAC", "of the small one's", *(f"images/s, {scope}" for scope in SCOPES), "speed"]
    cells = [
        [
            *(row["engine"], row["model"], row["reducer"], str(row["image_size"]), str(row["k"] or "-")),
            *(f"{row['gmacs']:.2f}", f"{row['share_of_small']:.2f}"),
            *(f"{row[scope]['images_per_s']:.1f}" for scope in SCOPES),
            f"{row[SCOPES[-1]]['speedup']:.2f}x",
        ]
        for row in rows
    ]
    return columns, cells


@click.command(cls=Script)
@click.option("--small", default="ViT-B-16", show_default=True, help="open_clip name, or local-dir:PATH.")
@click.option("--bigger", default="ViT-L-14", show_default=True, help="open_clip name, or local-dir:PATH.")
@click.option(
    *("--reducer", "reducers"),
    type=REDUCERS,
    default="none,rank,rank@168,merge@154,merge@140,merge@126",
    show_default=True,
    help="Of the bigger one.",
)
@click.option("--engine", "engines", type=NAMES, default=_CPU_ENGINES, show_default=True, help="Engines of the bundles.")
@click.option("--precision", default="fp32", show_default=True, help="As the engines have it; int8 needs images and is left to peers.")
@click.option("--batch", default=8, show_default=True, help="Images a call.")
@click.option("--threads", default=0, show_default=True, help="CPU threads of one call; 0 takes all that are granted.")
@click.option("--seconds", default=300.0, show_default=True, help="Time for the timed rounds (s); at least five rounds run.")
@click.option("--seed", default=0, show_default=True, help="Of random weights, images and order.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/bigger"), show_default=True, help="Where runs and bundles are made.")
@click.option("--prepare", is_flag=True, help="Only make the bundles, which needs no quiet machine.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Result file.  [default: named after the bigger model]")
def main(small: str, bigger: str, reducers: tuple[Reducer, ...], engines: tuple[str, ...], output: Path | None, **given: Any) -> None:
    """Races a small encoder in full with a bigger one, shortened to the same cost."""
    machine, progress, seed, precision = this_machine(), BarProgress(), given["seed"], given["precision"]
    shops = [Workshop(given["work"], model, "", "", seed, {}, progress) for model in (small, bigger)]
    rows = rows_of(shops[0], shops[1], reducers, precision)
    check_memory({f"{engine} {row.model} {row.reducer}": _weights_mib(row) for engine in engines for row in rows})
    if given["prepare"]:
        return
    plan, work = Plan(budget_s=given["seconds"], warmup_rounds=1, seed=seed), {**given, "progress": progress}
    found, rounds = measured(rows, engines, EngineOptions(threads=given["threads"]), plan, work)
    report = {
        "schema": SCHEMA,
        "rows": found,
        "rounds": rounds,
        **{name: given[name] for name in ("batch", "precision", "seed")},
        "threads": given["threads"] or machine.threads_granted,
        "device": machine.cpu,
        "load_average_before": machine.load_average,
        "images": f"{_PHOTOS} generated JPEGs of 500 x 375, in memory",
        "versions": library_versions(),
        "notes": ["random weights: speed and cost alone; accuracy at that cost needs the real weights"],
    }
    file = publish_json(named(output, "bigger", short_name(bigger)), report)
    show(_table(found), f"{short_name(bigger)} at the price of {short_name(small)}", report["notes"], [file])


def _weights_mib(row: Row) -> float:
    return sum(file.size for file in row.bundle.manifest.files.values()) / 2**20


if __name__ == "__main__":
    main()
