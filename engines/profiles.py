"""Which shapes an engine is compiled for, from a bundle's keep range and the batches asked for, and which profile a call belongs to."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from prtool.engines.base import BuildOptions, DeviceArray, Profile, ShapeRange
from prtool.errors import ConfigError, KeepError, ShapeError
from prtool.manifest import Manifest, TensorSpec

Sizes = Mapping[str, tuple[int, ...]]
"""What a call asks for: the name of a dynamic axis, or of an input that is itself a shape -> its size or its values."""


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
    # With several locations a graph sees the counts of each, which fall towards the last.
    ranges = [(lowest, opt, max(manifest.prune.counts(highest))) for lowest, opt, highest in asked]
    always = manifest.prune.always_kept
    return tuple({"batch": build.batch, "tokens": ShapeRange(*(always + k for k in counts)), "k": ShapeRange(*counts)} for counts in ranges)


def is_shape_input(spec: TensorSpec) -> bool:
    """Whether an input is itself a shape: a few int64 numbers ("k"), which TensorRT reads on the host."""
    return spec.dtype == "int64" and len(spec.shape) == 1 and isinstance(spec.shape[0], int)


def graph_profiles(inputs: Sequence[TensorSpec], profiles: Sequence[Profile], build: BuildOptions) -> tuple[Profile, ...]:
    """The profiles of one graph: of each profile the ranges that the graph has, the same ones once.

    () builds for `build.batch` where the batch is all that varies; raises ConfigError where an axis or a shape input has no range.
    """
    axes = [axis for spec in inputs for axis in spec.shape if isinstance(axis, str)]
    names = list(dict.fromkeys([*axes, *(spec.name for spec in inputs if is_shape_input(spec))]))
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
            sizes[spec.name] = tuple(int(value) for value in np.asarray(arrays[spec.name]))
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
    counts = ",".join(str(count) for count in sorted({value, *(profile[name].opt for profile in profiles)}))
    return f"build it again with '{command} --keep {counts}', or without --keep for every count"
