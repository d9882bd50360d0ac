"""TrainConfig: everything a training run depends on, from prtool.toml and overrides, and back."""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prtool.errors import ConfigError
from prtool.records import check_settings, from_plain, meanings, setting, to_plain
from prtool.spec import MERGE, NONE, RANK
from prtool.strict import TOML_BYTES, parse_toml, read_regular
from prtool.text_safety import printable
from prtool.trainer.settings import DistillConfig, FitConfig, GoldenConfig, PruneConfig, RecoverConfig, ScorerConfig, TokensConfig

PHASES = ("rank", "predictor", "recover", "tokens", "none")
DEVICES = ("auto", "cpu", "cuda")
DISTILL, RANKING = "distill", "ranking"
OBJECTIVES = (DISTILL, RANKING)
_DEEP = 0
PRESETS: dict[str, dict[str, object]] = {
    "default": {},
    "merge": {"prune.method": MERGE},
    "smaller-image": {"prune.method": NONE},
    "leave-one-out": {"objective": RANKING, "phases": ["rank", "predictor"], "scorer.checkerboard": 2.0},
    "paper": {
        "objective": RANKING,
        "phases": ["rank", "predictor"],
        **{"golden.score": "feature", "golden.group": 1, "golden.step": 10, "golden.floor": 146},
        **{"scorer.arch": "mix-mlp", "scorer.reduce": "average", "scorer.norm": False, "scorer.checkerboard": 0.0, "fit.loss": "kl"},
        **{"tokens.visual": 8, "tokens.layers": _DEEP, "tokens.first": 1, "tokens.label": 1.0, "tokens.distill": 0.0},
        **{"tokens.epochs": 5, "tokens.batch": 4, "tokens.lr": 0.0025},
    },
}
"""Settings by name: `prtool train --preset`. The paper's drops 10 patches a step until 146 of 196 are left (its code: 5 steps)."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything that a run depends on."""

    model: str = setting(
        "ViT-B-16",
        'an open_clip architecture ("ViT-B-16"), "hf-hub:ORG/REPO" or "local-dir:PATH"; "hf:ORG/REPO" or "hf:PATH" for transformers; '
        '"timm:ARCHITECTURE[.TAG]" for an image tower alone',
    )
    image_size: int = setting(
        0, "side in pixels of the square images that the encoder reads, a multiple of its patch; 0 = native, as large as at most", minimum=0
    )
    pretrained: str = setting("", 'a tag ("openai") or a checkpoint file; "" for random weights, or where the model brings its own')
    data: str = setting(
        "", "FOLDER, NAME:FOLDER (caltech101:/data), FILE.csv, or several with commas; docs/data.md has every form; not needed by phase none"
    )
    templates: tuple[str, ...] = setting(
        (), "prompts with one {} each, where the class name goes; [] = those of the data set by its name, else 'a photo of a {}.'"
    )
    train_images: int = setting(0, "training images used at most; 0 = all", minimum=0)
    val_images: int = setting(0, "validation images used at most; 0 = all", minimum=0)
    seed: int = setting(0, "of image subsets, the first weights of the scorer, and random model weights", minimum=0, maximum=2**32 - 1)
    device: str = setting("auto", "auto (CUDA where there is one), cpu or cuda", choices=DEVICES)
    phases: tuple[str, ...] = setting(
        (),
        "phases to run: rank (golden ranking), predictor (train the scorer), recover (correct the blocks that see fewer "
        "tokens), tokens (train learnable tokens), none (an untrained scorer); [] = "
        "all that makes prune.method better: predictor and recover for rank, recover for the others; there none without data",
        choices=PHASES,
    )
    objective: str = setting(
        DISTILL, "distill (match the pruned embedding to the unpruned one) or ranking (golden ranking, the paper's)", choices=OBJECTIVES
    )
    golden: GoldenConfig = field(default_factory=GoldenConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    recover: RecoverConfig = field(default_factory=RecoverConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)

    def __post_init__(self) -> None:
        check_settings(self)
        ranks = self.prune.method == RANK
        if not self.phases:
            others = ("recover",) if self.data else ("none",)
            object.__setattr__(self, "phases", ("predictor", "recover") if ranks else others)
        if not ranks and self.phases not in (("none",), ("recover",)):
            raise ConfigError(f"phases = {list(self.phases)}, but prune.method = {self.prune.method} has no predictor; give none, or recover")
        if self.prune.method == NONE and not self.image_size:
            raise ConfigError("prune.method = none at the native image size changes nothing; give image_size, such as --image-size 168")
        if "none" in self.phases and len(self.phases) > 1:
            raise ConfigError(f"phases = {list(self.phases)}, but give some of rank, predictor, recover and tokens, or none alone")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ConfigError(f"templates: {printable(repr(template))} must hold {{}} exactly once, where the class name goes")

    @classmethod
    def load(cls, path: Path | None = None, overrides: Mapping[str, object] | None = None) -> "TrainConfig":
        """Reads a TOML file and applies overrides.

        Args:
            path: the file, or None for the defaults.
            overrides: dotted name -> value, such as {"prune.locations": [4]}; they win over the file.

        Raises:
            ConfigError: the file is missing or no TOML, a setting is unknown, or a value has the wrong type or range.
        """
        settings = {} if path is None else _read_toml(path)
        for name, value in (overrides or {}).items():
            section, dot, last = name.rpartition(".")
            target = settings.setdefault(section, {}) if dot else settings
            if not isinstance(target, dict):
                raise ConfigError(f"{section} = {printable(repr(target))}, but it must be a section of named settings")
            target[last] = value
        return cls.from_json(settings)

    @classmethod
    def from_json(cls, value: object) -> "TrainConfig":
        """Reads plain JSON or TOML values.

        Raises:
            ConfigError: a setting is unknown, or a value has the wrong type or range.
        """
        config: TrainConfig = from_plain(cls, value)
        return config

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values; `from_json` reads them back."""
        plain: dict[str, Any] = to_plain(self)
        return plain


def show_config(config: TrainConfig) -> str:
    """The settings as TOML text that `TrainConfig.load` reads back, each with its meaning, unit and default."""
    notes, section, lines = meanings(TrainConfig), "", []
    read, toml = operator.attrgetter(*notes), partial(json.dumps, ensure_ascii=False)  # JSON's plain values are TOML as well
    for (name, note), value, default in zip(notes.items(), read(config), read(TrainConfig()), strict=True):
        before, _, last = name.rpartition(".")
        if before != section:
            section = before
            lines += ["", f"[{section}]"]
        lines.append(f"{last} = {toml(value)}  # {note}; default {toml(default)}")
    return "\n".join(lines) + "\n"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_regular(path, TOML_BYTES).decode())
    except FileNotFoundError as cause:
        raise ConfigError(f"config file {path} does not exist; write one with 'prtool train --show-config > {path}'") from cause
    except (OSError, ValueError) as cause:
        raise ConfigError(f"config file {path} cannot be read as TOML: {cause}") from cause
