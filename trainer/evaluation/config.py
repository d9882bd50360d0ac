"""What an evaluation compares, and on which images."""

from dataclasses import dataclass
from pathlib import Path

from prtool.errors import ConfigError
from prtool.records import check_value
from prtool.spec import Keep
from prtool.trainer.data.images import SPLITS
from prtool.trainer.settings import GOLDEN, METHOD_NAMES


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """What is compared, and on which images.

    Attributes:
        split: part of the data: train, val or test.
        keeps: keep ratios or counts.
        methods: of `METHOD_NAMES`, and "golden" (the oracle; it ranks every evaluated image first, seconds each).
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
    keeps: tuple[Keep, ...] = tuple(Keep.ratio(value) for value in (1.0, 0.8, 0.7, 0.6, 0.5))
    methods: tuple[str, ...] = ("patch-ranking", "cls-attention", "random")
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
        for name in self.methods:
            if name not in known:
                raise ConfigError(f"method = {name!r}, but it must be one of {', '.join(known)}")
        if len(set(self.methods)) != len(self.methods) or not self.methods:
            raise ConfigError(f"methods = {list(self.methods)}, but give at least one, each once; known: {', '.join(known)}")
        if not self.keeps:
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
