"""The folder of a run: what may stand there, what it is called by default, and which settings it belongs to."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prtool.errors import CheckpointError, ConfigError, DataError, StorageError
from prtool.files import OutputKind, storage_errors
from prtool.strict import parse_json, read_regular
from prtool.text_safety import printable
from prtool.trainer.checkpoint import Checkpoint, untuned
from prtool.trainer.config import TrainConfig
from prtool.trainer.datasets.address import parse_data
from prtool.trainer.inputs import model_folder
from prtool.trainer.record import RECORD_NAME, SCHEMA

_OURS = re.compile(r"(tensors|seen)[\w.-]*|golden(\.json)?|tokens|fit(-\d+)?\.safetensors|tune(\.safetensors)?|eval(-[\w.-]+)?|choice\.json|\..+")
_LOCK_NAME = ".lock"
_RECORD_BYTES = 1 << 26
_SHOWN, _VALUE = 3, 60
_LONGEST_NAME = 100
_log = logging.getLogger(__name__)


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run's record, or nothing but what an unfinished run holds."""
    record = folder / RECORD_NAME
    if os.path.lexists(record):
        try:
            value = parse_json(read_regular(record, _RECORD_BYTES))
        except (OSError, ValueError):
            return False
        return isinstance(value, dict) and {"schema", "scorer_config", "config"} <= value.keys()
    return all(_OURS.fullmatch(item.name) for item in folder.iterdir())


RUN = OutputKind("a run", _is_run, is_folder=True, is_filled=True)


def run_name(config: TrainConfig) -> str:
    """MODEL-DATA-HASH: the same for the same settings, phases and tokens apart, so that a command finds the run that it goes on with."""
    settings = {name: value for name, value in config.to_json().items() if name not in ("phases", "tokens")}
    settings |= {"model": str(model_folder(config.model) or config.model), "data": _data_text(config.data)}
    if Path(config.pretrained).is_file():
        settings["pretrained"] = str(Path(config.pretrained).resolve())
    key = json.dumps([settings, config.phases == ("none",)], sort_keys=True)
    words = [re.split(r"[:/\\]", part.rstrip("/"))[-1] for part in (config.model, config.data) if part]
    name = re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-.")[:_LONGEST_NAME].encode()[:_LONGEST_NAME].decode(errors="ignore")
    return f"{name or 'run'}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def earlier(run: Path, blank: Checkpoint, *, overwrite: bool) -> Checkpoint | None:
    """The checkpoint that stands in `run`, where it is of the settings (phases and tokens apart), model and data of `blank`.

    Args:
        run: its folder.
        blank: what would be written without training.
        overwrite: a trained run of other settings counts as none; else it is an error.

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
    if different and found.scorer_trained and not overwrite:
        raise finished(run, f"a finished run of other settings: {'; '.join(different[:_SHOWN])}")
    return None if different else found


def finished(run: Path, what: str) -> ConfigError:
    """The error of a call that would replace `what` a finished run holds."""
    return ConfigError(f"{run} holds {what}; {_choices()}")


@contextlib.contextmanager
def only_trainer(run: Path) -> Iterator[None]:
    """Holds the right to write into a run's folder; waits, and says so, while another process works there.

    Raises:
        ConfigError: its name is not valid UTF-8, which safetensors does not read.
        StorageError: the folder cannot be made or locked.
    """
    if str(run) != str(run).encode("utf-8", "replace").decode():
        raise ConfigError(f"the run folder {printable(run)} is not valid UTF-8, which the library of its files does not read; give another with -o")
    with storage_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / _LOCK_NAME)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("another process works in %s; waiting for it", run)
            lock.acquire()
    except (OSError, NotImplementedError) as cause:
        raise StorageError(f"cannot lock {run / _LOCK_NAME} ({cause}); choose a folder on a local disk that you may write to, with -o") from cause
    try:
        yield
    finally:
        lock.release()


def _choices() -> str:
    return "give another folder with -o, or --overwrite (overwrite=True) to replace that run"


def _data_text(data: str) -> str:
    try:
        return "\n".join(address.text() for address in parse_data(data))
    except DataError:
        return data


def _differences(found: Checkpoint, blank: Checkpoint) -> list[str]:
    """What the scorers depend on and is not the same, as "name = there, not here"; the learnable tokens come after them."""
    old, new = _identity(found), _identity(blank)
    return [
        f"{name} = {printable(old.get(name), _VALUE)} there, {printable(new.get(name), _VALUE)} here"
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    ]


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    outcome = {"scorer_trained", "metrics", "versions", "files", "tensors", "config", "tokens", "prune", "data", "scorer_config", "seen"}
    plain = {item.name: getattr(checkpoint, item.name) for item in dataclasses.fields(checkpoint) if item.name not in outcome}
    return _settings(checkpoint.config) | _flat({"data": dataclasses.asdict(checkpoint.data)}) | plain | {"prune": untuned(checkpoint.prune)}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that its record does not name in another form: model and data are absolute there."""
    named = ("phases", "tokens", "model", "pretrained", "data")
    return _flat({name: value for name, value in config.items() if name not in named})


def _damaged_config(run: Path) -> dict[str, Any]:
    """The settings in a record that fails its checks; {} where they cannot be read or are of another schema."""
    try:
        value = parse_json(read_regular(run / RECORD_NAME, _RECORD_BYTES))
        return _settings(value["config"]) if value["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
