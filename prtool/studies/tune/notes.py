"""What a reader of the figures of `prtool tune` has to know."""

from collections.abc import Sequence
from dataclasses import replace

from prtool.studies.tune.candidates import Candidate
from prtool.studies.tune.limits import Limits
from prtool.studies.tune.search import Search
from prtool.studies.tune.steps import Task

_DRIFT = 1.1


def notes(task: Task, search: Search, candidates: Sequence[Candidate], choice: Candidate | None, limits: Limits) -> tuple[str, ...]:
    """Of the search, the limits and the measurements; what was not tried comes first, by reason."""
    config, runs = task.config, list(search.runs.values())
    reasons = dict.fromkeys(search.untried.values())
    found = [f"not tried: {'; '.join(name for name, why in search.untried.items() if why == reason)}: {reason}" for reason in reasons]
    found += [] if config.limits.given() else [f"no limit was given, so the default applies: {limits}"]
    trained = [str(run.family) for run in runs if run.is_sibling and run.family.method == "rank"]
    found += [f"predictors were trained in sibling runs for: {'; '.join(trained)}"] if trained else []
    recovered = [str(run.family) for run in runs if run.is_sibling and run.is_recovered]
    found += [f"sibling runs were recovered for: {'; '.join(recovered)}"] if recovered else []
    plain = [str(run.family) for run in runs if task.recovers and not run.is_recovered]
    found += [f"not recovered, since others are better without it already: {'; '.join(plain)}"] if plain else []
    found += _of_families(search)
    found += [note for note in (_uncertain_drop(candidates, choice, limits), _uncertain_speed(choice, limits)) if note]
    if config.precision != "fp32":
        found.append(f"quality is that of float32 in PyTorch; only the checks of the export limit the error of {config.precision}")
    if config.split != "val":
        found.append(f"chosen on the {config.split} split: figures on the same images flatter the result")
    times = [run.timing["unpruned_ms"] for run in search.timed]
    if max(times) > _DRIFT * min(times):
        found.append(
            f"the unpruned model took {min(times):.3g} to {max(times):.3g} ms in the benchmarks of the families: the machine changed between them. "
            "Speed-ups are of the same rounds and compare; the milliseconds are the median's"
        )
    return tuple(dict.fromkeys(found))


def _of_families(search: Search) -> list[str]:
    """The notes of evaluations and benchmarks; the families that share one stand before it, unless all do."""
    sharing: dict[str, list[str]] = {}
    for run in search.timed:
        for note in dict.fromkeys(run.notes):
            sharing.setdefault(note, []).append(str(run.family))
    return [note if len(names) == len(search.timed) else f"{'; '.join(names)}: {note}" for note, names in sharing.items()]


def _uncertain_drop(candidates: Sequence[Candidate], choice: Candidate | None, limits: Limits) -> str:
    """Where the 95 % interval of a drop is wider than the limit."""
    limit = limits.max_drop
    pruned = [row for row in candidates if row.speed is not None and row.drop_error is not None and not row.is_unpruned]
    uncertain = [row for row in pruned if limit is not None and (row.drop_error or 0.0) > limit]
    if not uncertain:
        return ""
    row = choice if choice in uncertain and choice is not None else uncertain[0]
    return (
        f"{len(uncertain)} of {len(pruned)} drops have a 95 % interval wider than the limit of {limit:g} points: {row} has "
        f"{row.drop:.2f} +- {row.drop_error:.2f} points (paired, {row.row.images} images); more validation images (--set images=N) would narrow it"
    )


def _uncertain_speed(row: Candidate | None, limits: Limits) -> str:
    """Where the 95 % interval of the chosen speed-up reaches beyond the limit on speed."""
    if row is None or row.speed is None or row.speed.low >= row.speed.ratio:
        return ""
    speed = row.speed
    if limits.cost_within(replace(row, speed=replace(speed, latency_ms=speed.latency_ms * speed.ratio / speed.low))):
        return ""
    return f"the chosen speed-up has a 95 % interval of {speed.low:.2f} to {speed.high:.2f}, which exceeds the limit; measure for longer"
