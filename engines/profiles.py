"""Which shapes an engine is compiled for, from a bundle's keep range and the batches asked for, and which profile a call belongs to."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from prtool.engines.base import BuildOptions, DeviceArray, Profile, ShapeRange
from prtool.errors import ConfigError, KeepError, ShapeError
from prtool.manifest import Manifest, TensorSpec
from prtool.spec import MERGE, PruneSpec

Sizes = Mapping[str, tuple[int, ...]]
"""What a call asks for, by the names of a profile: one number each."""


def profiles(manifest: Manifest, build: BuildOptions) -> tuple[Profile, ...]:
    """The profiles of every graph of a bundle; a graph uses the axes that it has.

    One profile for each count of `build.keeps`, else one over the bundle's whole keep range, optimised for the default keep; where nothing
    is dropped only the batch varies. Raises KeepError where a count is outside that range.
    """
    low, high = manifest.keep_range
    for k in build.keeps:
        if not low <= k <= high:
            raise KeepError(f"k = {k}, but the bundle allows {low} to {high} patches; build for counts in that range")
    if not manifest.prune.locations:
        return ({"batch": build.batch},)
    asked = [(k, k, k) for k in build.keeps] or [(low, min(max(manifest.default_keep, low), high), high)]
    return tuple({"batch": build.batch, **_pruned(manifest.prune, *counts)} for counts in asked)


def _pruned(prune: PruneSpec, low: int, opt: int, high: int) -> Profile:
    """Ranges of the tokens behind the locations, and of each location's count: all that a call may name, or just those of one keep."""
    wanted = prune.counts(opt)
    least = wanted if low == high else _least_counts(prune, low)
    most = wanted if low == high else (prune.counts(high)[0],) * len(wanted)
    names = shape_names(TensorSpec("k", "int64", (len(wanted),)))
    counts = {name: ShapeRange(*values) for name, *values in zip(names, least, wanted, most, strict=True)}
    # Behind which location a graph of stages lies is not known here.
    tokens = ShapeRange(*(prune.always_kept + k for k in (low, opt, max(most))))
    return {"tokens": tokens, **counts}


def _least_counts(prune: PruneSpec, low: int) -> tuple[int, ...]:
    """The fewest patches that can be left at each location, where at least `low` are left in the end.

    TensorRT tries a graph at the ends of its ranges, and merging fails where it is to remove more than half of the patches.
    """
    found, left = [], prune.patches
    for _ in prune.locations:
        left = max(left - left // 2 if prune.method == MERGE else 1, low)
        found.append(left)
    return tuple(found)


def shape_names(spec: TensorSpec) -> list[str]:
    """The names of the values of an input that is itself a shape: its own, or NAME[1], NAME[2], ... of several."""
    count = spec.shape[0]
    return [spec.name] if count == 1 else [f"{spec.name}[{place}]" for place in range(1, int(count) + 1)]


def is_shape_input(spec: TensorSpec) -> bool:
    """Whether an input is itself a shape: a few int64 numbers ("k"), which TensorRT reads on the host."""
    return spec.dtype == "int64" and len(spec.shape) == 1 and isinstance(spec.shape[0], int)


def graph_profiles(inputs: Sequence[TensorSpec], profiles: Sequence[Profile], build: BuildOptions) -> tuple[Profile, ...]:
    """The profiles of one graph: of each profile the ranges that the graph has, the same ones once.

    () builds for `build.batch` where the batch is all that varies; raises ConfigError where an axis or a shape input has no range.
    """
    axes = [axis for spec in inputs for axis in spec.shape if isinstance(axis, str)]
    names = list(dict.fromkeys([*axes, *(name for spec in inputs if is_shape_input(spec) for name in shape_names(spec))]))
    chosen: list[Profile] = []
    for profile in profiles or ({"batch": build.batch},):
        missing = [name for name in names if name not in profile]
        if missing:
            raise ConfigError(
                f"no range is given for {', '.join(missing)}, but TensorRT builds for ranges of every size that varies ({', '.join(names)}); "
                "take them from prtool.engines.profiles.profiles(manifest, build)"
            )
        own = {name: profile[name] for name in names}
        if own not in chosen:
            chosen.append(own)
    return tuple(chosen)


def profiles_text(profiles: Sequence[Profile]) -> str:
    """Profiles for a message: "batch 1:8:32, k 98:118:196 | ..."."""
    return " | ".join(", ".join(f"{name} {r.min}:{r.opt}:{r.max}" for name, r in sorted(profile.items())) for profile in profiles)


def call_sizes(inputs: Sequence[TensorSpec], arrays: Mapping[str, DeviceArray]) -> Sizes:
    """What a call asks for, from arrays that agree with the declared inputs; shape inputs are numpy arrays."""
    sizes: dict[str, tuple[int, ...]] = {}
    for spec in inputs:
        if is_shape_input(spec):
            sizes.update({name: (int(value),) for name, value in zip(shape_names(spec), np.asarray(arrays[spec.name]), strict=True)})
        else:
            sizes.update({axis: (int(n),) for axis, n in zip(spec.shape, arrays[spec.name].shape, strict=True) if isinstance(axis, str)})
    return sizes


def choose_profile(profiles: Sequence[Profile], sizes: Sizes, graph: str, engine: str) -> int:
    """The index of the narrowest profile that holds a call, then of the nearest optimal sizes; ShapeError, with what to build, where none does."""
    fitting = [place for place, profile in enumerate(profiles) if all(_holds(profile[name], values) for name, values in sizes.items())]
    if not fitting:
        raise ShapeError(_outside(profiles, sizes, graph, engine))

    def narrowness(place: int) -> tuple[int, int]:
        ranges = profiles[place]
        width = math.prod(ranges[name].max - ranges[name].min + 1 for name in sizes)
        return width, sum(abs(value - ranges[name].opt) for name, values in sizes.items() for value in values)

    return min(fitting, key=narrowness)


def _holds(allowed: ShapeRange, values: Sequence[int]) -> bool:
    return all(allowed.min <= value <= allowed.max for value in values)


def _outside(profiles: Sequence[Profile], sizes: Sizes, graph: str, engine: str) -> str:
    command = f"prtool build --engine {engine}"
    for name, values in sizes.items():
        ranges = sorted({(profile[name].min, profile[name].max) for profile in profiles})
        wrong = [value for value in values if not any(low <= value <= high for low, high in ranges)]
        if wrong:
            built = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges)
            return f"{name} = {wrong[0]}, but {graph} was built for {built}; {_remedy(name, wrong[0], profiles, command)}"
    asked = ", ".join(f"{name} = {', '.join(map(str, values))}" for name, values in sizes.items())
    return f"{graph} was built for {profiles_text(profiles)}, and no single profile of these holds {asked}; build it with '{command}'"


def _remedy(name: str, value: int, profiles: Sequence[Profile], command: str) -> str:
    if name == "batch":
        old = profiles[0]["batch"]
        return f"build it again with '{command} --batch {min(old.min, value)}:{old.opt}:{max(old.max, value)}'"
    if any(profile[name].min < profile[name].max for profile in profiles):
        return f"the bundle allows no other; build it again with '{command}', or export the bundle again for other counts"
    if name == "tokens":
        return f"build it again with '{command}' for every count, or add the count behind these tokens to --keep"
    if name.startswith("k["):
        return f"build it again with '{command}' for every count, or add to --keep the one that leaves these patches"
    counts = ",".join(str(count) for count in sorted({value, *(profile[name].opt for profile in profiles)}))
    return f"build it again with '{command} --keep {counts}', or without --keep for every count"
