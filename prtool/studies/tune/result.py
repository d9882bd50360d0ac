"""TuneResult: what `prtool tune` chose for a run, a file next to its checkpoint that `prtool export` reads."""

import re
from dataclasses import dataclass
from pathlib import Path

from prtool.errors import CheckpointError, ConfigError
from prtool.files import file_kind, sha256_file
from prtool.records import from_plain, to_plain
from prtool.spec import NONE, Keep
from prtool.store import read_sealed, write_sealed
from prtool.text_safety import printable
from prtool.trainer.evaluation.report import UNPRUNED
from prtool.trainer.runs.record import RECORD_NAME, read_record

SCHEMA = 2
RESULT_NAME = "tune.json"
RESULT = file_kind("a result of 'prtool tune'", {".json": re.compile(rb'\{\n "schema": \d+,\n "checkpoint_sha256"')})


@dataclass(frozen=True, slots=True)
class TuneResult:
    """How a run shortens its encoder, how much, and why.

    Attributes:
        schema: number of this form.
        checkpoint_sha256: digest of the record of the run that the file lies in.
        run: the run to export, as a path from that run; "." for itself, else a sibling.
        run_sha256: digest of that run's record.
        method: what shortens the sequence, of `prtool.spec.METHODS`; "unpruned" where the unpruned model is best.
        image_size: height and width of the images that the encoder reads.
        locations: as `prune.locations` takes them; () where nothing is dropped.
        keep: share of the patches kept; 1.0 where nothing is dropped.
        k: number of patches kept.
        limits: the limits that applied, by the names of `Limits`.
        figures: what was measured, by the names of the report; what is unknown is absent.
        engine, precision, batch, device: what the time was measured with.
        data: the data folder, and `split` the part of it, that quality was measured on.
        versions: of the engine's library and others.
    """

    schema: int
    checkpoint_sha256: str
    run: str
    run_sha256: str
    method: str
    image_size: tuple[int, int]
    locations: tuple[int, ...]
    keep: float
    k: int
    limits: dict[str, float]
    figures: dict[str, float]
    engine: str
    precision: str
    batch: int
    device: str
    data: str
    split: str
    versions: dict[str, str]

    @property
    def is_unpruned(self) -> bool:
        """Whether the unpruned model is best: mode "full" of a bundle."""
        return self.method == UNPRUNED

    @property
    def kept(self) -> Keep:
        """The default keep of the bundle; every patch where nothing is dropped."""
        return Keep.ratio(1.0) if self.method in (UNPRUNED, NONE) else Keep.count(self.k)

    def __str__(self) -> str:
        height, width = self.image_size
        where = f" (locations {','.join(map(str, self.locations))})" if self.locations else ""
        return f"method {self.method}{where}, images of {height} x {width} px, keep {self.keep:g}"


def record_digest(run: Path) -> str:
    """SHA-256 of a run's record, which holds the digests of its other files.

    Raises:
        CheckpointError: there is none.
    """
    try:
        return sha256_file(run / RECORD_NAME)
    except OSError as cause:
        raise CheckpointError(f"{run} is no finished run: {RECORD_NAME} cannot be read ({cause}); make one with 'prtool train -o {run}'") from cause


def write_result(run: Path, result: TuneResult) -> Path:
    """Writes the result into the run, atomically; returns the file.

    Raises:
        StorageError: it cannot be written; an earlier result stays.
    """
    write_sealed(run / RESULT_NAME, to_plain(result))
    return run / RESULT_NAME


def read_result(run: Path) -> TuneResult | None:
    """The result of `prtool tune` for a run; None where there is none.

    Raises:
        CheckpointError: the file is damaged, was edited, or belongs to another checkpoint than the run's, as after another training.
    """
    path = run / RESULT_NAME
    if not path.exists():
        return None
    result = _read(path)
    if result.checkpoint_sha256 != record_digest(run):
        raise CheckpointError(f"{path} was made for another checkpoint than the one in {run}; {_again(run)}")
    if not (run / result.run).resolve().is_relative_to(run.resolve()):
        raise CheckpointError(f"{path} names the run {result.run!r}, which lies outside of {run}; {_again(run)}")
    if result.run_sha256 != record_digest(run / result.run):
        raise CheckpointError(f"{path} was made for another checkpoint than the one in {run / result.run}; {_again(run)}")
    method = read_record(run / result.run).prune.method
    if not result.is_unpruned and result.method != method:
        raise CheckpointError(f"{path} has method {printable(repr(result.method))}, but {run / result.run} has {method!r}; {_again(run)}")
    return result


def _read(path: Path) -> TuneResult:
    try:
        value = read_sealed(path)
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"{path} is damaged or was edited ({cause}); {_again(path.parent)}") from cause
    if value.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} has schema {printable(value.get('schema'))}, but this prtool reads schema {SCHEMA}; {_again(path.parent)}")
    try:
        result: TuneResult = from_plain(TuneResult, value)
    except ConfigError as cause:
        raise CheckpointError(f"{path} is damaged or was edited: {cause}; {_again(path.parent)}") from cause
    return result


def _again(run: Path) -> str:
    return f"run 'prtool tune {run}' again, delete the file, or give --keep"
