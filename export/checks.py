"""Checks of an export that need neither PyTorch nor graphs."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from prtool.bundle import BUNDLE
from prtool.errors import ConfigError, EngineUnavailable
from prtool.extras import install_hint
from prtool.files import check_output
from prtool.records import check_value
from prtool.spec import Keep
from prtool.trainer.data.address import parse_data
from prtool.trainer.data.load import data_exists, load_split
from prtool.trainer.runs.folder import input_paths
from prtool.trainer.runs.record import Record, read_record

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
MIN_IMAGES = 16
"""Minimum number of images that int8 takes its scales from."""


def usual_keep(run: Path) -> Keep:
    """What an export of a run keeps where nothing is asked for: 60 %, or the nearest that its recovery was trained for; every patch where no
    location drops any.

    Raises:
        CheckpointError: there is no finished run.
    """
    record = read_record(run)
    if not record.prune.locations:
        return Keep.ratio(1.0)
    low, high = record.keep_range
    usual = Keep.ratio(0.6).resolve(record.prune.patches)
    return Keep.ratio(0.6) if low <= usual <= high else Keep.count(min(max(usual, low), high))


def check_export(
    run: Path, out: Path, keep: Keep, precisions: Sequence[str], data: str | Path | None = None, patch_tokens: int | None = None
) -> str | None:
    """Checks that a run can be exported.

    Args:
        run: folder of a checkpoint.
        out: the bundle's folder.
        keep: what the bundle keeps by default.
        precisions: of its graphs.
        data: images to compare on; None takes the run's.
        patch_tokens: as `PruneSpec.patch_tokens_block` takes it; None for none.

    Returns:
        The data to compare on; None for none.

    Raises:
        CheckpointError: there is no finished run.
        KeepError: the keep is out of range.
        DataError: `data` does not exist, or has no images for int8.
        ConfigError: a precision or the block of the patch tokens is unknown, or int8 has too few images; or `out` is or holds an input, or
            something other than a bundle.
        EngineUnavailable: int8's library is not installed.
    """
    for precision in precisions:
        check_value("precision", precision, choices=PRECISIONS)
    record = read_record(run)
    record.prune.counts(keep)
    if patch_tokens is not None:
        record.prune.patch_tokens_block(patch_tokens)
    if data is not None:
        parse_data(data)
    root = record.data.root
    found = str(data) if data is not None else root if root and data_exists(root) else None
    if "int8" in precisions:
        _check_int8(run, record, found)
    check_output(out, BUNDLE, (run, *input_paths(record.model, record.pretrained, found)))
    return found


def _check_int8(run: Path, record: Record, data: str | None) -> None:
    if importlib.util.find_spec("nncf") is None:
        raise EngineUnavailable(f"int8 needs NNCF, which is not installed; {install_hint('int8')}")
    if data is None:
        gone = f"the data of {run} are gone ({record.data.root})" if record.data.root else f"{run} was made without data"
        raise ConfigError(f"int8 takes its scales from real images, but {gone}; give images with --data")
    images = len(load_split(data, "train"))
    if images < MIN_IMAGES:
        raise ConfigError(f"int8 takes its scales from real images, and {data} has {images} in its split 'train'; give at least {MIN_IMAGES}")
