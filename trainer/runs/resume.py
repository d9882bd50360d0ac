"""Resuming a run: whether the checkpoint that stands in a folder belongs to the settings, model and data of a call."""

import dataclasses
from pathlib import Path
from typing import Any

from prtool.errors import CheckpointError, ConfigError
from prtool.strict import parse_json, read_regular
from prtool.text_safety import printable
from prtool.trainer.runs.checkpoint import Checkpoint, without_tokens
from prtool.trainer.runs.record import RECORD_BYTES, RECORD_NAME, SCHEMA

_MAX_SHOWN, _VALUE_CHARACTERS = 3, 60


def earlier(run: Path, blank: Checkpoint, *, overwrite: bool) -> Checkpoint | None:
    """The checkpoint that stands in `run`, where it is of the settings (phases, recovery and tokens apart), model and data of `blank`.

    `blank` is what would be written without training. With `overwrite`, a trained run of other settings counts as none.

    Raises:
        ConfigError: a trained run of other settings stands there, or a damaged one whose settings are not known to be the same.
    """
    if not (run / RECORD_NAME).exists():
        return None
    try:
        found = Checkpoint.load(run)
        Checkpoint.tidy(run)
    except CheckpointError as cause:
        if overwrite or _damaged_config(run) == _settings(blank.config):
            return None
        raise ConfigError(f"{run} holds a run that cannot be used ({cause}); {_choices()}") from cause
    different = _differences(found, blank)
    if different and found.trained and not overwrite:
        raise finished(run, f"a finished run of other settings: {'; '.join(different[:_MAX_SHOWN])}")
    return None if different else found


def finished(run: Path, what: str) -> ConfigError:
    """The error of a call that would replace `what` a finished run holds."""
    return ConfigError(f"{run} holds {what}; {_choices()}")


def _choices() -> str:
    return "give another folder with -o, or --overwrite (overwrite=True) to replace that run"


def _differences(found: Checkpoint, blank: Checkpoint) -> list[str]:
    """What the scorers depend on and is not the same, as "name = there, not here"; recovery and learnable tokens come after them."""
    old, new = _identity(found), _identity(blank)
    return [
        f"{name} = {printable(old.get(name), _VALUE_CHARACTERS)} there, {printable(new.get(name), _VALUE_CHARACTERS)} here"
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    ]


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    outcome = {"scorer_trained", "metrics", "versions", "files", "tensors", "config", "recovery", "tokens", "prune", "data", "scorer_config", "seen"}
    plain = {item.name: getattr(checkpoint, item.name) for item in dataclasses.fields(checkpoint) if item.name not in outcome}
    return _settings(checkpoint.config) | _flat({"data": dataclasses.asdict(checkpoint.data)}) | plain | {"prune": without_tokens(checkpoint.prune)}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that its record does not name in another form: model and data are absolute there."""
    named = ("phases", "recover", "tokens", "model", "pretrained", "data")
    return _flat({name: value for name, value in config.items() if name not in named})


def _damaged_config(run: Path) -> dict[str, Any]:
    """The settings in a record that fails its checks; {} where they cannot be read or are of another schema."""
    try:
        value = parse_json(read_regular(run / RECORD_NAME, RECORD_BYTES))
        return _settings(value["config"]) if value["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
