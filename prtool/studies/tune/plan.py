"""What `prtool tune` tries: the families that a run and its model can have, checked before any work."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prtool.errors import ConfigError, ModelError
from prtool.spec import MERGE, METHODS, NONE, RANK
from prtool.studies.tune.candidates import Family
from prtool.studies.tune.config import TuneConfig
from prtool.trainer.config import TrainConfig
from prtool.trainer.models.merging import merging_steps
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.runs.checkpoint import Checkpoint

SMALLER_SIZES = 8
"""Smaller image sizes that are tried by default, at most."""
_LEAST_SIDE = 0.5
"""The smallest of them, as a share of the native side: a quarter of the patches."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The families of a search.

    Attributes:
        own: of the tuned run.
        first: tried in any case, as far as the time limit allows.
        mixtures: of a smaller image and another reducer, tried where they promise something.
        left_out: name of what was not asked for and is impossible -> reason.
    """

    own: Family
    first: tuple[Family, ...]
    mixtures: tuple[Family, ...]
    left_out: dict[str, str]


def make_plan(checkpoint: Checkpoint, tower: VisionTower, config: TuneConfig) -> Plan:
    """The families of a search; what a setting names must be possible, what is tried by default may be left out.

    Args:
        checkpoint: of the tuned run.
        tower: the model's image tower at its native size.
        config: names methods, sizes and locations, or leaves them to the default.

    Raises:
        ConfigError: locations beyond the depth, an image size that the tower cannot take, ranking without training data, or nothing to try.
        ModelError: the tower cannot merge or read another size, and the settings name it.
    """
    left_out: dict[str, str] = {}
    own = family_of(checkpoint, tower)
    sizes = _sizes(tower, config, left_out)
    places = _locations(checkpoint, tower, config, own, left_out)
    smaller = [size for size in sizes if size]
    alone = [Family(NONE, size) for size in smaller if NONE in (config.methods or METHODS)]
    native = [Family(method, 0, where) for method, several in places.items() for where in several]
    mixtures = [replace(family, image_size=size) for size in smaller for family in native]
    if config.image_sizes:
        first, mixtures = [*(native if 0 in sizes else ()), *alone, *mixtures], []
    else:
        first = [*native, *alone]
        is_free = not config.locations and own.method in (config.methods or METHODS)
        first += [own] if is_free and own not in first else []
    if not first:
        raise ConfigError(f"methods = {list(config.methods)} with image_sizes = {list(config.image_sizes)} leave nothing to try; give others")
    return Plan(own, tuple(first), tuple(family for family in mixtures if family != own), left_out)


def family_of(checkpoint: Checkpoint, tower: VisionTower) -> Family:
    """The family of a run; `tower` is at its native size."""
    method, places = checkpoint.prune.method, checkpoint.prune.locations
    size = 0 if (checkpoint.image_size,) * 2 == tower.image_size else checkpoint.image_size
    if method == MERGE:
        places = places[:1] if places[-1] == tower.depth - 1 else (places[0], places[-1])
    return Family(method, size, places)


def smaller_sizes(tower: VisionTower) -> tuple[int, ...]:
    """Sides in pixels at equal distances, at most `SMALLER_SIZES`, from one patch below the native side down to half of it."""
    # Halves are rounded to a whole number of patches.
    found = [side for side in reversed(tower.smaller_sizes) if side >= round(_LEAST_SIDE * tower.grid[0]) * tower.patch_size[0]]
    count = min(len(found), SMALLER_SIZES)
    return tuple(found[place * (len(found) - 1) // max(count - 1, 1)] for place in range(count))


def _sizes(tower: VisionTower, config: TuneConfig, left_out: dict[str, str]) -> list[int]:
    """Image sizes, 0 for the native one, largest first."""
    if config.image_sizes:
        for size in filter(None, config.image_sizes):
            tower.resized(size)
        found = {0 if (size, size) == tower.image_size else size for size in config.image_sizes}
        return sorted(found, key=lambda size: -(size or tower.image_size[0]))
    sizes = smaller_sizes(tower)
    try:
        for size in sizes[-1:]:
            tower.resized(size)
    except ModelError as cause:
        if config.methods == (NONE,):
            raise
        left_out["smaller images"] = str(cause)
        return [0]
    return [0, *sizes]


def _locations(
    checkpoint: Checkpoint, tower: VisionTower, config: TuneConfig, own: Family, left_out: dict[str, str]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Reducer -> the sets of locations that are tried with it."""
    asked = config.locations or (own.locations or TrainConfig.from_json(checkpoint.config).prune.locations,)
    firsts = tuple(dict.fromkeys(places[:1] for places in asked))
    sets = {RANK: asked, MERGE: firsts} if config.locations or own.method == RANK else {RANK: firsts, MERGE: asked if own.locations else firsts}
    if not config.locations:
        # The earlier merging begins, the fewer tokens merge in each block: better at low costs, no better at high ones.
        sets[MERGE] = tuple(dict.fromkeys((*sets[MERGE], (1,))))
    found: dict[str, tuple[tuple[int, ...], ...]] = {}
    for method, check in ((RANK, _check_ranking), (MERGE, _check_merging)):
        if method not in (config.methods or METHODS):
            continue
        try:
            for places in sets[method]:
                check(checkpoint, tower, places)
        except (ConfigError, ModelError) as cause:
            if method in config.methods or (config.locations and method == RANK):
                raise
            left_out["ranking" if method == RANK else "merging"] = str(cause)
        else:
            found[method] = sets[method]
    return found


def _check_ranking(checkpoint: Checkpoint, tower: VisionTower, places: Sequence[int]) -> None:
    # First without learnable tokens, so that the message is about the locations and not about the tokens that follow them.
    spec = tower.prune_spec(tuple(places))
    own = checkpoint.prune
    if own.method != RANK and not checkpoint.data.root:
        raise ConfigError("prune.method = rank needs images to train a predictor on, but the run was made without data; give merge or none")
    follows = own.learnable_tokens and TrainConfig.from_json(checkpoint.config).tokens.first == 0
    replace(spec, learnable_tokens=own.learnable_tokens, learnable_from_block=places[0] if follows else own.learnable_from_block)


def _check_merging(_checkpoint: Checkpoint, tower: VisionTower, places: Sequence[int]) -> None:
    tower.prune_spec(tuple(places), method=MERGE)
    merging_steps(tower)
