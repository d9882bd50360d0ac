"""The place of a run: what may stand there, and what it is called by default; without PyTorch."""

import hashlib
import json
import os
import re
from pathlib import Path

from prtool.errors import DataError
from prtool.files import OutputKind
from prtool.strict import parse_json, read_regular
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.address import parse_data
from prtool.trainer.runs.inputs import model_folder
from prtool.trainer.runs.record import RECORD_NAME

RECORD_BYTES = 1 << 26
_OURS = re.compile(r"(tensors|seen)[\w.-]*|golden(\.json)?|tokens(\.safetensors)?|fit(-\d+)?\.safetensors|tune|eval(-[\w.-]+)?|choice\.json|\..+")
_LONGEST_NAME = 100


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


def _data_text(data: str) -> str:
    try:
        return "\n".join(address.text() for address in parse_data(data))
    except DataError:
        return data
