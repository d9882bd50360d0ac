"""The files and folders that a run reads, whose place no output may take."""

import contextlib
from pathlib import Path

from prtool.errors import DataError
from prtool.trainer.data.address import parse_data

_FOLDER_PREFIX = "local-dir:"


def model_folder(model: str) -> Path | None:
    """The folder of a model that is named by one, absolute; None for names that are looked up elsewhere."""
    folder = Path(model.removeprefix(_FOLDER_PREFIX)).expanduser()
    return folder.resolve() if model.startswith(_FOLDER_PREFIX) or folder.is_dir() else None


def input_paths(model: str, pretrained: str, data: str | Path | None) -> tuple[Path, ...]:
    """Where a model and data lie, as far as they are on this disk.

    Args:
        model, pretrained: as `load_model` takes them.
        data: as `--data` takes it; None or "" for none.
    """
    folder = model_folder(model)
    found = [] if folder is None else [folder]
    if pretrained and Path(pretrained).is_file():
        found.append(Path(pretrained))
    if data:
        with contextlib.suppress(DataError):  # what is gone cannot be lost; who reads it raises
            found += [address.path for address in parse_data(data)]
    return tuple(found)
