"""The data sets of a study: found at the addresses that were given, and which of the paper's are not among them."""

from collections.abc import Sequence
from pathlib import Path

from prtool.errors import DataError
from prtool.studies.paper.plan import DataSet
from prtool.studies.paper.published import columns_of, recognise
from prtool.trainer.data.address import folder_of, parse_data
from prtool.trainer.data.formats.detect import known_set
from prtool.trainer.data.load import available_splits, load_split


def data_sets(addresses: Sequence[str]) -> tuple[DataSet, ...]:
    """The data sets at some addresses; a folder that is none itself gives every data set in it.

    Raises:
        DataError: there is none, the message shows the expected tree; a set is incomplete; or two are the same one.
    """
    found = [data for address in addresses for data in _at(address)]
    for place, data in enumerate(found):
        same = next((other for other in found[:place] if data.column == other.column or data.name == other.name), None)
        if same is not None:
            raise DataError(f"{same.address} and {data.address} are both {data.column}; give one of them, a table has one column for it")
    if not found:
        raise DataError(
            f"no data set was found in {', '.join(addresses)}; expected FOLDER/NAME/ with one of the forms of docs/data.md for each data set"
        )
    return tuple(found)


def absent(sets: Sequence[DataSet], table: str) -> tuple[str, ...]:
    """The paper's data sets that are not there: those of the table, or of its comparison of methods where the table has no figures."""
    there = {data.column for data in sets}
    return tuple(name for name in columns_of(table) or columns_of("main") if name not in there)


def _at(address: str) -> list[DataSet]:
    folder = folder_of(address)
    if not folder.exists():
        raise DataError(f"data folder {folder} does not exist; give --data folders of data sets, or NAME:FOLDER")
    try:
        test = load_split(address, "test")
    except DataError as cause:
        if _is_set(address):
            raise
        inside = sorted(item for item in folder.iterdir() if item.is_dir()) if folder.is_dir() else []
        found = [data for item in inside if _readable(item) or _is_known(str(item)) for data in _at(str(item))]
        if not found:
            raise DataError(f"{address} is no data set and holds none: {cause}") from cause
        return found
    known = parse_data(address)[0].known
    name = folder.resolve().name if known is None else known.name
    return [DataSet(address, name, recognise(name), len(test.classnames), len(test))]


def _is_set(address: str) -> bool:
    """Whether an address is a data set itself, if an incomplete one: looking for others inside would hide what is wrong with it."""
    try:
        return _is_known(address) or bool(available_splits(address))
    except DataError:
        return False


def _is_known(address: str) -> bool:
    return any(known_set(parsed) is not None for parsed in parse_data(address))


def _readable(folder: Path) -> bool:
    try:
        return len(load_split(folder, "test")) > 0
    except DataError:
        return False
