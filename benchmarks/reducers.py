"""What shortens an encoder ("rank", "merge/1@168+", "none@140"): its run, its bundle, and the keeps that cost a wanted share of the unpruned MACs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.common import slug
from prtool.bundle import Bundle
from prtool.cli.parameters import Values
from prtool.errors import BundleError, ConfigError
from prtool.export.checks import usual_keep
from prtool.export.run import export_run, source_of
from prtool.export.write import ExportOptions
from prtool.manifest import Manifest
from prtool.pictures import short_name
from prtool.progress import Progress
from prtool.spec import MERGE, METHODS, NONE, RANK, Cost, PruneSpec
from prtool.store import digest
from prtool.trainer.config import TrainConfig
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.runs.checkpoint import load_seeded
from prtool.trainer.runs.folder import copy_run
from prtool.trainer.train import train

WITHIN = 0.03
"""A keep whose cost is further than this from the wanted share is left out."""
_WRITTEN = re.compile(r"(?P<method>[a-z]+)(/(?P<block>[1-9][0-9]*))?(@(?P<side>[1-9][0-9]*))?(?P<recovered>\+)?", re.ASCII)
_MOST = 0.95
"""What leaves more of the patches than this shortens next to nothing."""
_SMALLER = (2, 3)
"""Patches that the sides of mixed reducers' images are short of."""


@dataclass(frozen=True, slots=True)
class Reducer:
    """A method of `prtool.spec.METHODS`, the size of its images and where it begins.

    Attributes:
        method: rank, merge or none.
        image_size: side in pixels, 0 for the native one.
        location: the block at which patches drop, or begin to merge; 0 for the default.
        recovered: with corrections of the blocks that see fewer patches.
    """

    method: str
    image_size: int = 0
    location: int = 0
    recovered: bool = False

    @classmethod
    def parse(cls, text: str) -> "Reducer":
        """Reads METHOD[/BLOCK][@PIXELS]; "none" and "none+" stand for the smaller images that `chosen` finds."""
        found = _WRITTEN.fullmatch(text)
        if found is None or found["method"] not in METHODS or (found["block"] and found["method"] == NONE):
            raise ValueError(f"{text!r} is not METHOD[/BLOCK][@PIXELS][+] with a method of {', '.join(METHODS)}, and a block only where it shortens")
        return cls(found["method"], int(found["side"] or 0), int(found["block"] or 0), bool(found["recovered"]))

    def __str__(self) -> str:
        return (
            self.method
            + (f"/{self.location}" if self.location else "")
            + (f"@{self.image_size}" if self.image_size else "")
            + ("+" if self.recovered else "")
        )

    @property
    def learns(self) -> bool:
        """Whether its run learns from images."""
        return self.method == RANK or self.recovered


def share_of(text: str) -> float:
    """Reads a share of the unpruned MACs, 0 to 1."""
    share = float(text)
    if not 0.0 < share < 1.0:
        raise ValueError(f"{text!r} is not a share of the unpruned multiply-accumulates, above 0 and below 1")
    return share


SHARES, REDUCERS = Values("share", share_of), Values("reducer", Reducer.parse)
"""The values of --share and --reducer."""


def default_reducers(tower: VisionTower) -> tuple[Reducer, ...]:
    """The three reducers, merging from block 1 on as ToMe does, and mixtures with images of two and three patches less a side."""
    smaller = [tower.smaller_sizes[-less] for less in _SMALLER]
    mixtures = (Reducer(RANK, smaller[0]), *(Reducer(MERGE, side) for side in smaller))
    return (Reducer(RANK), Reducer(MERGE), Reducer(MERGE, location=1), Reducer(NONE), *mixtures)


def chosen(reducers: Sequence[Reducer], tower: VisionTower, shares: Sequence[float]) -> tuple[Reducer, ...]:
    """The reducers, "none" replaced by the smaller images whose cost is nearest to each share."""
    found: list[Reducer] = []
    for reducer in reducers:
        plain = (reducer.method, reducer.image_size) == (NONE, 0)
        found += [replace(reducer, image_size=side) for side in _sides(tower, shares)] if plain else [reducer]
    return tuple(dict.fromkeys(found))


def keeps_at(spec: PruneSpec, cost: Cost, shares: Sequence[float], keep_range: tuple[int, int]) -> dict[float, int]:
    """Share -> number of patches, of those of a range, whose cost is nearest to that share of the unpruned MACs.

    The cost is PyTorch's, which computes all queries of the last block. A share is left out where no keep costs nearly that, and where
    next to nothing but the image would be smaller although the method shortens.
    """
    cost, (low, high) = replace(cost, last_block_queries=0), keep_range
    shortened = [k for k in range(low, high + 1) if spec.method == NONE or k <= _MOST * spec.patches]
    costs = {k: 1.0 / cost.theoretical_speedup(spec, spec.counts(k)) for k in shortened}
    found = {share: min(costs, key=lambda k: abs(costs[k] - share)) for share in shares} if costs else {}
    kept = {share: k for share, k in found.items() if abs(costs[k] - share) <= WITHIN}
    # Of shares that lie close together a smaller image has one.
    return {share: k for share, k in kept.items() if share == min((other for other in kept if kept[other] == k), key=lambda s: abs(costs[k] - s))}


def keeps_of(manifest: Manifest, shares: Sequence[float]) -> dict[float, int]:
    """What `keeps_at` finds in the range of a bundle."""
    return keeps_at(manifest.prune, manifest.cost, shares, manifest.keep_range)


def _sides(tower: VisionTower, shares: Sequence[float]) -> Iterator[int]:
    costs = {side: tower.gmacs_at(side) / tower.gmacs_at(tower.image_size[0]) for side in tower.smaller_sizes}
    for share in shares:
        side = min(costs, key=lambda item: abs(costs[item] - share))
        if abs(costs[side] - share) <= WITHIN:
            yield side


@dataclass(frozen=True, slots=True)
class Workshop:
    """Makes the runs and bundles of one model; what an earlier call made with the same settings is used again.

    Attributes:
        folder: where they lie.
        model, pretrained: as `prtool train` takes them.
        data: images that predictors learn from and int8's scales come from; "" trains nothing.
        seed: of everything random, random weights included.
        settings: further settings of training, by dotted name.
        progress: receives the stages of each step.
    """

    folder: Path
    model: str
    pretrained: str
    data: str
    seed: int
    settings: Mapping[str, object]
    progress: Progress

    def tower(self) -> VisionTower:
        """The encoder at its native size."""
        return load_seeded(self.model, self.pretrained, self.seed).tower

    def run(self, reducer: Reducer, data: str | None = None) -> Path:
        """The run of a reducer, made if it is not there; `data` in place of the workshop's."""
        settings = self._settings(reducer, data)
        folder = self._place("runs", reducer, settings)
        if reducer.recovered and reducer.method == RANK and not folder.exists():
            # Its predictor is that of the run without recovery.
            copy_run(self.run(replace(reducer, recovered=False), data), folder)
        # The folder is named after the settings: what is there is trained again only where the data have changed.
        train(TrainConfig.load(None, settings), folder, self.progress, overwrite=True)
        return folder

    def bundle(self, reducer: Reducer, precisions: Sequence[str] = ("fp32",), images: str | None = None) -> Bundle:
        """The bundle of a reducer with at least these precisions, made if it is not there; `images` are for int8's scales."""
        folder = self._place("bundles", reducer, self._settings(reducer, None))
        if not _has(folder, precisions):
            run = self.run(reducer)
            export_run(run, folder, ExportOptions(usual_keep(run), tuple(precisions)), images, self.progress)
        return Bundle.open(folder)

    def keeps(self, reducer: Reducer, shares: Sequence[float]) -> dict[float, int]:
        """What `keeps_at` finds for a reducer, within the range of its recovery where it has one."""
        source = source_of(self.run(reducer))
        return keeps_at(source.spec, source.cost(), shares, source.keep_range)

    def _settings(self, reducer: Reducer, data: str | None) -> dict[str, object]:
        data = self.data if data is None else data
        found = {"model": self.model, "pretrained": self.pretrained, "data": data, "seed": self.seed}
        found |= {"image_size": reducer.image_size, "prune.method": reducer.method}
        found |= {"prune.locations": (reducer.location,)} if reducer.location else {}
        if reducer.recovered and not data:
            raise ConfigError(f"{reducer} is to be recovered, but there are no images to learn from; give data, or the reducer without its +")
        if not data or not reducer.learns:
            return found | {"phases": ("none",)}
        parts = {"recover": reducer.recovered, "distill": reducer.method == RANK, "fit": reducer.method == RANK}
        learned = {f"{part}.seed": self.seed for part in ("fit", "recover") if self.seed} | dict(self.settings)
        found |= {name: value for name, value in learned.items() if parts.get(name.split(".")[0], True)}
        phases = (*(("predictor",) if reducer.method == RANK else ()), *(("recover",) if reducer.recovered else ()))
        return found | {"phases": phases}

    def _place(self, kind: str, reducer: Reducer, settings: Mapping[str, object]) -> Path:
        return self.folder / kind / f"{slug(short_name(self.model), reducer)}-{digest(settings)[:10]}"


def _has(folder: Path, precisions: Sequence[str]) -> bool:
    """Whether an earlier call left a bundle there that this version reads and that holds these graphs."""
    try:
        return set(precisions) <= set(Bundle.open(folder, verify=False).manifest.graphs)
    except BundleError:
        return False


def check_some(points: Sequence[object], reducers: Sequence[Reducer], shares: Sequence[float]) -> None:
    """Raises ConfigError where none of the reducers reaches any of the shares."""
    if not points:
        asked = f"{', '.join(map(str, reducers))} at {', '.join(f'{share:g}' for share in shares)}"
        raise ConfigError(f"{asked}: no keep and no smaller image costs nearly that; give other shares or reducers")
