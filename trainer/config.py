"""TrainConfig: everything a training run depends on, from prtool.toml and overrides, and back."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prtool.errors import ConfigError
from prtool.records import from_plain, to_plain
from prtool.strict import TOML_BYTES, parse_toml, read_regular
from prtool.text_safety import printable
from prtool.trainer.settings import DistillConfig, FitConfig, GoldenConfig, ScorerConfig, TokensConfig

PHASES = ("rank", "predictor", "tokens", "none")
DEVICES = ("auto", "cpu", "cuda")
DISTILL, RANKING = "distill", "ranking"
OBJECTIVES = (DISTILL, RANKING)
_DEEP = 0
PRESETS: dict[str, dict[str, object]] = {
    "default": {},
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

NOTES: dict[str, str] = {
    "model": 'an open_clip architecture ("ViT-B-16"), "hf-hub:ORG/REPO" or "local-dir:PATH"',
    "pretrained": 'a tag ("openai") or a checkpoint file; "" for random weights, or where the model brings its own',
    "data": "FOLDER, NAME:FOLDER (caltech101:/data), FILE.csv, or several with commas; docs/data.md has every form; not needed by phase none",
    "templates": "prompts with one {} each, where the class name goes; [] = those of the data set by its name, else 'a photo of a {}.'",
    "train_images": "training images used at most; 0 = all",
    "val_images": "validation images used at most; 0 = all",
    "seed": "of image subsets, the first weights of the scorer, and random model weights",
    "device": "auto (CUDA where there is one), cpu or cuda",
    "phases": "rank (golden ranking), predictor (train the scorer), tokens (tune learnable tokens), none (an untrained scorer, for speed work)",
    "objective": "distill (the scorer learns from its own choice, by the cosine to the unpruned embedding) or ranking (golden ranking, the paper's)",
    "golden.score": "feature (the paper's choice), confidence or label",
    "prune.locations": "blocks (1-based, increasing) on entry to which patches drop; several prune progressively, by equal numbers at each",
    "prune.counts": "patches that stay at each location, in place of equal drops, such as [157, 137, 127, 118]; [] for equal drops",
    "prune.rescore": "train a scorer for each further location; false keeps the order of the first",
    "golden.group": "side of the square of neighbouring patches removed together; 1 = single patches",
    "golden.step": "groups dropped in each greedy step; 0 = score once",
    "golden.floor": "greedy search ends when at most this many patches remain",
    "golden.memory_mb": "most memory for one batch of candidates, in MiB",
    "golden.precision": "auto (bf16 where the machine computes it natively), fp32 or bf16",
    "scorer.arch": "mix-mlp (the paper's choice), mlp or transformer",
    "scorer.channels": "channels that each token is reduced to",
    "scorer.token_hidden": "hidden width of the Mixer's MLP over tokens",
    "scorer.channel_hidden": "hidden width of the MLP over channels",
    "scorer.heads": "attention heads of the transformer",
    "scorer.reduce": "linear (a learned projection) or average (adaptive average pooling, as in the research code)",
    "scorer.norm": "standardise each token over its channels first",
    "scorer.checkerboard": "how much every second patch is raised when patches are chosen, in standard deviations of the scores; 0 = none",
    "scorer.auxiliary": "features besides channels: position (learned), norm (of each token), cls (cosine to the class token); [] = none",
    "fit.loss": "kl (the research code's), margin, listmle or regression",
    "fit.epochs": "passes over the training images",
    "fit.batch": "images a step",
    "fit.lr": "Adam's learning rate at the start",
    "fit.final_lr": "learning rate at the end of the half cosine",
    "fit.weight_decay": "Adam's weight decay",
    "fit.noise": "Gaussian noise on the tokens, as a share of their standard deviation; 0 = none",
    "fit.match_at": "m of the matching rate that chooses the best epoch; 0 = 100 of 196 patches, the same share of others",
    "fit.seed": "of the order of images, sampled pairs and noise",
    "fit.save_every": "epochs between two saved states",
    "distill.steps": "optimiser steps of a scorer that learns from its own choice (objective distill), rounded up to whole passes over the images",
    "distill.batch": "images a step",
    "distill.lr": "Adam's learning rate at the start",
    "distill.final_lr": "learning rate at the end of the half cosine",
    "distill.keep_low": "least share of the patches that a step keeps",
    "distill.keep_high": "most",
    "distill.runner_ups": "share of the patches that stand beside the kept ones as runner-ups",
    "distill.noise": "Gumbel noise on the scores, in standard deviations of an image's scores",
    "distill.temperature": "width of the soft step between kept and dropped, in the same unit",
    "distill.floor": "attention weight of a runner-up, as a share of a kept patch's",
    "tokens.visual": "learnable tokens behind the patches; 0 = none",
    "tokens.layers": "blocks that have visual tokens of their own; 1 = shallow, 0 = every block from tokens.first on (deep)",
    "tokens.first": "block on entry to which visual tokens are appended; 0 = the pruning location, 1 = the paper's",
    "tokens.text": "tokens of learned context in the prompts; 0 = none",
    "tokens.text_words": 'words that the context starts from; "" = those of the template',
    "tokens.shots": "training images of each class; 0 = all",
    "tokens.keep": "keep ratio of the pruned encoder that the tokens are tuned in",
    "tokens.distill": "weight of 1 - cosine to the unpruned embedding, which needs no labels",
    "tokens.label": "weight of the cross-entropy on the class prompts; 0 tunes without labels",
    "tokens.epochs": "passes over the images",
    "tokens.batch": "images a step",
    "tokens.lr": "SGD's learning rate at the start of the half cosine to 0",
    "tokens.momentum": "SGD's momentum",
    "tokens.weight_decay": "SGD's weight decay",
    "tokens.seed": "of the few images, their order and the tokens' first values",
}
"""What each setting means, with its unit; `show_config` prints it."""


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """Where patches drop; `NOTES` says what each setting means."""

    locations: tuple[int, ...] = (4,)
    counts: tuple[int, ...] = ()
    rescore: bool = False

    def __post_init__(self) -> None:
        places = list(self.locations)
        if not places or min(places) < 1 or any(later <= place for place, later in itertools.pairwise(places)):
            raise ConfigError(f"prune.locations = {printable(places)}, but they must be blocks from 1 on that increase, such as [4, 6, 8, 10]")
        if self.counts and len(self.counts) != len(places):
            raise ConfigError(f"prune.counts = {list(self.counts)}, but prune.locations has {len(places)} blocks; give one count for each")
        if self.rescore and len(places) == 1:
            raise ConfigError(f"prune.rescore = true, but prune.locations = {places} is one block; give several, such as [4, 6, 8, 10]")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything a run depends on; `NOTES` says what each setting means."""

    model: str = "ViT-B-16"
    pretrained: str = ""
    data: str = ""
    templates: tuple[str, ...] = ()
    train_images: int = 0
    val_images: int = 0
    seed: int = 0
    device: str = "auto"
    phases: tuple[str, ...] = ("predictor",)
    objective: str = DISTILL
    golden: GoldenConfig = field(default_factory=GoldenConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)

    def __post_init__(self) -> None:
        _check_phases(self.phases)
        if self.device not in DEVICES:
            raise ConfigError(f"device = {_shown(self.device)}, but it must be one of {', '.join(DEVICES)}")
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective = {_shown(self.objective)}, but it must be one of {', '.join(OBJECTIVES)}")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ConfigError(f"templates: {_shown(template)} must hold {{}} exactly once, where the class name goes")
        for name in ("train_images", "val_images", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}, but it must be 0 or more")
        if self.seed >= 2**32:
            raise ConfigError(f"seed = {self.seed}, but it must be 0 to {2**32 - 1}")

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
                raise ConfigError(f"{section} = {_shown(target)}, but it must be a section of named settings")
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
    plain, default = config.to_json(), TrainConfig().to_json()
    lines = [_line(name, value, default[name], "") for name, value in plain.items() if not isinstance(value, dict)]
    for section, values in plain.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]"]
            lines += [_line(name, value, default[section][name], f"{section}.") for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    return printable(repr(value))


def _check_phases(phases: tuple[str, ...]) -> None:
    for phase in phases:
        if phase not in PHASES:
            raise ConfigError(f"phase = {_shown(phase)}, but it must be one of {', '.join(PHASES)}")
    if not phases or ("none" in phases and len(phases) > 1) or len(set(phases)) != len(phases):
        raise ConfigError(f"phases = {list(phases)}, but give some of rank, predictor and tokens, or none alone, each once")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_regular(path, TOML_BYTES).decode())
    except FileNotFoundError as cause:
        raise ConfigError(f"config file {path} does not exist; write one with 'prtool train --show-config > {path}'") from cause
    except (OSError, ValueError) as cause:
        raise ConfigError(f"config file {path} cannot be read as TOML: {cause}") from cause


def _line(name: str, value: object, default: object, section: str) -> str:
    # JSON's text, numbers, booleans and lists of them are TOML as well.
    text = f"{name} = {json.dumps(value, ensure_ascii=False)}"
    return f"{text}  # {NOTES[section + name]}; default {json.dumps(default, ensure_ascii=False)}"
