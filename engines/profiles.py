"""Which shapes an engine is compiled for: from a bundle's keep range and the batches asked for."""

from prtool.engines.base import BuildOptions, Profile, ShapeRange
from prtool.errors import KeepError
from prtool.manifest import Manifest
from prtool.spec import Keep


def profiles(manifest: Manifest, build: BuildOptions) -> tuple[Profile, ...]:
    """The profiles of every graph of a bundle; a graph uses the axes that it has.

    Args:
        manifest: says how many patches a call may keep, and which tokens are kept besides.
        build: batches, and the keep counts that get a narrow profile each.

    Returns:
        One profile over the bundle's whole keep range, whose usual count is the default keep; or, with
        `build.keeps`, one profile for each count.

    Raises:
        KeepError: a count is outside the bundle's keep range.
    """
    low, high = manifest.keep_range
    for k in build.keeps:
        if not low <= k <= high:
            raise KeepError(f"k = {k}, but the bundle allows {low} to {high} patches; build for counts in that range")
    usual = min(max(manifest.default_keep, low), high)
    asked = [(k, k, k) for k in build.keeps] or [(low, usual, high)]
    # With several locations a graph sees the counts of each, which fall towards the last.
    ranges = [ShapeRange(least, middle, max(manifest.prune.counts(Keep.count(most)))) for least, middle, most in asked]
    return tuple(_profile(manifest.prune.always_kept, counts, build.batch) for counts in ranges)


def _profile(always_kept: int, counts: ShapeRange, batch: ShapeRange) -> Profile:
    tokens = ShapeRange(always_kept + counts.least, always_kept + counts.usual, always_kept + counts.most)
    return {"batch": batch, "tokens": tokens, "k": counts}
