"""What an evaluation compares, and on which images."""

from dataclasses import dataclass
from pathlib import Path

from prtool.errors import ConfigError
from prtool.records import check_value
from prtool.spec import MERGE, NONE, RANK, Keep, PruneSpec
from prtool.trainer.data.images import SPLITS
from prtool.trainer.settings import GOLDEN, MERGE_METHOD, METHOD_NAMES, RECOVERED, SMALLER_IMAGE, TOME

KEEPS = tuple(Keep.ratio(value) for value in (1.0, 0.8, 0.7, 0.6, 0.5))
"""What is compared unless others are asked for, as far as a run can reach them."""
_DEFAULT = {RANK: ("patch-ranking", MERGE_METHOD, SMALLER_IMAGE, "random"), MERGE: (MERGE_METHOD, SMALLER_IMAGE, TOME), NONE: (SMALLER_IMAGE,)}
_SUITED = {**{method: (RECOVERED, *names) for method, names in _DEFAULT.items()}, RANK: (*METHOD_NAMES, GOLDEN)}
"""prune.method of a run -> methods that can be compared with it: those that drop patches need a location where it drops some."""


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """What is compared, and on which images.

    Attributes:
        split: part of the data: train, val or test.
        keeps: keep ratios or counts; None takes those of `KEEPS` that the run's prune.method can reach.
        methods: of `METHOD_NAMES`, and "golden" (the oracle; it ranks every evaluated image first, seconds each); None takes those that
            suit the run's prune.method: patch-ranking, merge, smaller-image and random where patches are ranked, merge, smaller-image and
            tome where they merge, else smaller-image; and recovered where the run has a recovery. Of these, a method that the encoder
            cannot do is left out, with a note.
        images: at most this many, drawn by the subset's seed; 0 takes all.
        batch: images encoded at once; results do not depend on it, and a CPU is fastest with small ones (16 by 20 % over 32).
        seed: of random choices.
        subset_seed: of the subset of images; None takes `seed`.
        retrieval_images: overlap and recall are computed on at most this many of the images, at equal distances in the split; 0 takes all.
            Each takes 4 E bytes of memory for every method and keep.
        templates: prompts with one {} each; empty takes the run's, or for data of other classes that data's own.
        store: folder in which an unfinished evaluation is kept, to go on with; None keeps none, and `evaluate_run` takes the run's.
        unpruned: folder of unpruned embeddings, which evaluations of the same model and images share; None computes them anew.
    """

    split: str = "test"
    keeps: tuple[Keep, ...] | None = None
    methods: tuple[str, ...] | None = None
    images: int = 0
    batch: int = 16
    seed: int = 0
    templates: tuple[str, ...] = ()
    store: Path | None = None
    unpruned: Path | None = None
    subset_seed: int | None = None
    retrieval_images: int = 5000

    def __post_init__(self) -> None:
        known = (*METHOD_NAMES, GOLDEN)
        if self.methods is not None:
            check_value("method", self.methods, choices=known)
        if self.methods == ():
            raise ConfigError(f"methods is empty, but give at least one of {', '.join(known)}")
        if self.keeps == ():
            raise ConfigError("keeps is empty, but give at least one keep ratio (0.6) or count (118)")
        if self.split not in SPLITS:
            raise ConfigError(f"split = {self.split!r}, but it must be one of {', '.join(SPLITS)}")
        check_value("batch", self.batch, minimum=1)
        check_value("images", self.images, minimum=0)
        check_value("retrieval_images", self.retrieval_images, minimum=0)
        for name, seed in (("seed", self.seed), ("subset_seed", self.drawn_by)):
            if not 0 <= seed < 2**32:
                raise ConfigError(f"{name} = {seed}, but it must be 0 to {2**32 - 1}")

    @property
    def drawn_by(self) -> int:
        """The seed that draws the subset of images."""
        return self.seed if self.subset_seed is None else self.subset_seed

    def keeps_of(self, spec: PruneSpec) -> tuple[Keep, ...]:
        """The keeps that are compared in a run with this spec."""
        return self.keeps or tuple(keep for keep in KEEPS if keep.resolve(spec.patches) >= spec.least_keep)

    def methods_of(self, spec: PruneSpec, *, recovered: bool = False) -> tuple[str, ...]:
        """The methods that are compared in a run with this spec, which has a recovery or none.

        Raises:
            ConfigError: one that was asked for does not suit the run's prune.method.
        """
        for name in self.methods or ():
            if name not in _SUITED[spec.method]:
                why = "the run drops no patch" if spec.method == NONE else "the run drops no patch at a location, it merges them"
                raise ConfigError(
                    f"method {name!r} cannot be compared here: {why}; possible with its prune.method: {', '.join(_SUITED[spec.method])}"
                )
        return self.methods or (*((RECOVERED,) if recovered else ()), *_DEFAULT[spec.method])
