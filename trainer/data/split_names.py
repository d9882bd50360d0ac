"""What the parts of a data set are called by others."""

from prtool.trainer.data.images import SPLITS

_NAMES = {**{split: split for split in SPLITS}, "valid": "val", "validation": "val"}


def split_named(name: str) -> str | None:
    """The split that a folder or a value of a column names, in any case; None where it names none."""
    return _NAMES.get(name.lower())
