"""The folder of a run: its name, who may write there, and what can be checked before PyTorch is imported."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from prtool.errors import ConfigError, DataError
from prtool.files import OutputKind, check_output, locked, new_directory
from prtool.store import digest
from prtool.strict import parse_json, read_regular
from prtool.text_safety import printable
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.address import parse_data
from prtool.trainer.evaluation.config import EvalConfig
from prtool.trainer.models.loading.source import FOLDER_PREFIXES, LOCAL, canonical_name, check_pretrained
from prtool.trainer.runs.record import RECORD_BYTES, RECORD_NAME, Record, read_record

_OURS = re.compile(
    r"(tensors|seen)[\w.-]*|golden(\.json)?|(recovery|tokens)(\.safetensors)?|fit(-\d+)?\.safetensors|tune(\.json)?|eval(-[\w.-]+)?|\..+"
)
_MAX_NAME = 100


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a run's record, or nothing but what an unfinished run holds."""
    record = folder / RECORD_NAME
    if os.path.lexists(record):
        try:
            value = parse_json(read_regular(record, RECORD_BYTES))
        except (OSError, ValueError):
            return False
        return isinstance(value, dict) and {"schema", "scorer_config", "config"} <= value.keys()
    return all(_OURS.fullmatch(item.name) for item in folder.iterdir())


RUN = OutputKind("a run", _is_run, is_folder=True, is_filled=True)


def copy_run(source: Path, folder: Path) -> None:
    """A run to go on from, such as one whose predictor another recovers; without its sub-folders, which hold what can be computed again.

    Raises:
        StorageError: it cannot be written; then `folder` is not there.
    """
    with new_directory(folder) as temporary:
        for file in source.glob("[!.]*"):
            if file.is_file():
                shutil.copy2(file, temporary)


def run_name(config: TrainConfig) -> str:
    """MODEL-DATA-HASH: the same for the same settings, phases and tokens apart, so that a command finds the run that it continues."""
    settings = {name: value for name, value in config.to_json().items() if name not in ("phases", "tokens")}
    settings |= {"model": str(model_folder(config.model) or config.model), "data": _data_text(config.data)}
    if Path(config.pretrained).is_file():
        settings["pretrained"] = str(Path(config.pretrained).resolve())
    words = [re.split(r"[:/\\]", part.rstrip("/"))[-1] for part in (config.model, config.data) if part]
    name = re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-.")[:_MAX_NAME].encode()[:_MAX_NAME].decode(errors="ignore")
    return f"{name or 'run'}-{digest(settings, config.phases == ('none',))[:8]}"


@contextlib.contextmanager
def only_trainer(run: Path) -> Iterator[None]:
    """Holds the lock on a run's folder; waits, with a logged warning, while another process holds it.

    Raises:
        ConfigError: its name is not valid UTF-8, which safetensors does not read.
        StorageError: the folder cannot be made or locked.
    """
    if str(run) != str(run).encode("utf-8", "replace").decode():
        raise ConfigError(f"the run folder {printable(run)} is not valid UTF-8, which the library of its files does not read; give another with -o")
    with locked(run / ".lock", f"another process works in {run}; waiting for it", "-o"):
        yield


def model_folder(model: str) -> Path | None:
    """The folder of a model that is named by one, absolute; None for names that are looked up elsewhere."""
    prefix = next((prefix for prefix in FOLDER_PREFIXES if model.startswith(prefix)), "")
    folder = Path(model.removeprefix(prefix)).expanduser()
    return folder.resolve() if prefix == LOCAL or folder.is_dir() else None


def input_paths(model: str, pretrained: str, data: str | Path | None) -> tuple[Path, ...]:
    """Where a model and data, named as `load_model` and `--data` take them, lie: as far as they are on this disk."""
    folder = model_folder(model)
    found = [] if folder is None else [folder]
    if pretrained and Path(pretrained).is_file():
        found.append(Path(pretrained))
    if data:
        with contextlib.suppress(DataError):  # what is gone cannot be lost; who reads it raises
            found += [address.path for address in parse_data(data)]
    return tuple(found)


def check_training(config: TrainConfig, run: Path) -> None:
    """Checks that a run can be trained.

    Raises:
        ConfigError: a phase needs data and none is given; or `run` is or holds an input, or holds something else than a run.
        DataError: the data are not there.
        ModelError: there is no such model, or no such file of weights.
        StorageError: the run cannot be written.
    """
    if config.data:
        parse_data(config.data)
    elif config.phases != ("none",):
        raise ConfigError("no data folder is given; give --data DIR (data = in prtool.toml), or --phase none for an untrained scorer")
    check_pretrained(canonical_name(config.model), config.pretrained)
    check_output(run, RUN, input_paths(config.model, config.pretrained, config.data))


def check_evaluation(run: Path, data: str | Path | None, config: EvalConfig) -> None:
    """Checks that a run can be evaluated.

    Raises:
        CheckpointError: there is no finished run.
        ConfigError: neither the run nor the call names data; or two keeps are the same number of patches; or a method does not suit the run.
        KeepError: a keep is out of range, or of the run's reach.
        DataError: the data are not there.
    """
    record = read_record(run)
    parse_data(data_of(run, record, data))
    config.methods_of(record.prune)
    record.prune.distinct_counts(config.keeps_of(record.prune))


def data_of(run: Path, record: Record, data: str | Path | None) -> str:
    """The given data, or the run's.

    Raises:
        ConfigError: there are neither.
    """
    if not data and not record.data.root:
        raise ConfigError(f"{run} was made without data, so there are no images to measure it on; give --data DIR")
    return str(data or record.data.root)


def _data_text(data: str) -> str:
    try:
        return "\n".join(address.text() for address in parse_data(data))
    except DataError:
        return data
