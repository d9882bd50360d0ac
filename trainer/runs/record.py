"""The record of a run, checkpoint.json: everything of a checkpoint but its tensors; read without PyTorch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prtool.errors import CheckpointError
from prtool.exchange import sweep
from prtool.files import FileDigest, storage_errors
from prtool.manifest import RecoveryInfo, allowed_keeps
from prtool.records import from_plain
from prtool.spec import PruneSpec
from prtool.store import read_sealed
from prtool.strict import read_regular
from prtool.text_safety import printable
from prtool.trainer.settings import ScorerConfig

SCHEMA = 1
RECORD_NAME = "checkpoint.json"
RECORD_BYTES = 1 << 26
TENSORS, SEEN = "tensors", "seen"
"""The kinds of files next to a record: tensors of the scorers and tokens, fingerprints of the images that the run has seen.

They are named after their content, so a checkpoint that is saved over another leaves its files alone until its own record stands.
"""
_FILE_NAME = re.compile(r"[a-z]+-[0-9a-f]{16}\.[a-z]+")


@dataclass(frozen=True, slots=True)
class DataInfo:
    """The images of a run.

    Attributes:
        root: the data folder, absolute; "" when none was used.
        train_sha256, val_sha256: digests of the image sets (paths, sizes, labels).
        train_images, val_images: how many were used.
        held_out: the validation images were held out of the training split, for the data has no val split.
    """

    root: str = ""
    train_sha256: str = ""
    val_sha256: str = ""
    train_images: int = 0
    val_images: int = 0
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class MatchRow:
    """Matching rate @m on the validation images: the predictor's, compared with a random and a constant (mean-rank) order."""

    m: int
    predictor: float
    random: float
    constant: float


@dataclass(frozen=True, slots=True)
class TokensRecord:
    """The learnable tokens of a run; none by default.

    Attributes:
        visual: tokens behind the patches, 0 for none.
        first: 1-based block on entry to which they are appended.
        layers: blocks, from `first` on, that have tokens of their own.
        text: tokens of context in the prompts, 0 for none.
        words: what the context stands for in the text of a prompt.
        keep: the keep ratio that they were trained at.
        losses: mean loss of each epoch.
        accuracies: zero-shot accuracy on the validation images in percent, before the first epoch and after each; empty without labels.
        cosines: mean cosine to the unpruned embedding on the validation images, likewise.
        best_epoch: whose values were kept; 0 where the encoder is better without tokens, which then has none.
    """

    visual: int = 0
    first: int = 1
    layers: int = 0
    text: int = 0
    words: str = ""
    keep: float = 0.0
    losses: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    cosines: tuple[float, ...] = ()
    best_epoch: int = 0


@dataclass(frozen=True, slots=True)
class RecoveryRecord:
    """The training of the corrections of the blocks that see fewer tokens; none by default.

    Attributes:
        kept: the corrections; None where none were trained, or the encoder is better without.
        losses: mean loss of each pass, relative to that without corrections.
        best_pass: from 1; 0 where there are none.
    """

    kept: RecoveryInfo | None = None
    losses: tuple[float, ...] = ()
    best_pass: int = 0


@dataclass(frozen=True, slots=True)
class Metrics:
    """What training measured; empty for an untrained scorer.

    Attributes:
        matching: one row for each m.
        best_epoch: epoch (from 1) whose weights were kept; 0 without training.
        losses: mean training loss of each epoch.
        rates: validation matching rate @`match_at` after each epoch.
        match_at: m that chose the best epoch.

    With several scorers these are the first one's.
    """

    matching: tuple[MatchRow, ...] = ()
    best_epoch: int = 0
    losses: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()
    match_at: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """Everything of a checkpoint but the tensors; checkpoint.json holds it.

    Attributes:
        schema: number of this form.
        model, pretrained: as `load_model` takes them; local paths are absolute.
        model_seed: torch's seed while the model is loaded; it decides random weights.
        weights_sha256: digest of the image tower's tensors.
        image_size: side of the square images that the encoder reads; 0 for its native size.
        width: channels D of a token.
        prune: where tokens drop.
        scorer_config: kind and sizes of the patch scorer, where patches are ranked.
        rescored: later locations have scorers of their own; False where they keep the order of the first.
        scorer_trained: False for a freshly initialised scorer, whose selection of patches means nothing.
        classnames: in label order; empty when the run had no data.
        templates: prompts with one {} each.
        config: the run's TrainConfig as plain JSON.
        data, metrics: what was used and measured.
        recovery: the corrections of the blocks that see fewer tokens.
        tokens: the learnable tokens.
        versions: libraries that made the run.
        files: every other file of the checkpoint.
    """

    schema: int
    model: str
    pretrained: str
    model_seed: int
    weights_sha256: str
    width: int
    prune: PruneSpec
    scorer_config: ScorerConfig
    scorer_trained: bool
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    config: dict[str, Any]
    rescored: bool = False
    image_size: int = 0
    data: DataInfo = field(default_factory=DataInfo)
    metrics: Metrics = field(default_factory=Metrics)
    recovery: RecoveryRecord = field(default_factory=RecoveryRecord)
    tokens: TokensRecord = field(default_factory=TokensRecord)
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileDigest] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether anything in it was trained."""
        return self.scorer_trained or self.recovery != RecoveryRecord()

    @property
    def keep_range(self) -> tuple[int, int]:
        """Least and most patches that the encoder may keep."""
        return allowed_keeps(self.prune, self.recovery.kept)


def read_record(home: Path) -> Record:
    """Reads and checks a run's record.

    Raises:
        CheckpointError: there is none, its schema is unknown, or it was changed.
    """
    path = home / RECORD_NAME
    try:
        value = read_sealed(path)
        if value.get("schema") != SCHEMA:
            found = printable(value.get("schema"))
            raise CheckpointError(f"{path} has schema {found}, but this prtool reads schema {SCHEMA}; run 'prtool train' again")
        record: Record = from_plain(Record, value)
    except (FileNotFoundError, NotADirectoryError) as cause:
        raise CheckpointError(f"{home} is no finished run: it has no {RECORD_NAME}; make one with 'prtool train -o {home}'") from cause
    except (OSError, ValueError) as cause:  # ConfigError too
        raise CheckpointError(f"{path} is damaged or was edited ({cause}); run 'prtool train' again") from cause
    return record


def read_file(home: Path, files: Mapping[str, FileDigest], kind: str) -> bytes:
    """The one file of a kind that a record names, checked; b"" where it names none.

    Raises:
        CheckpointError: the record names several, or the file is missing, damaged or changed.
    """
    names = [name for name in files if name.startswith(f"{kind}-")]
    if not names:
        return b""
    path, digest = home / names[0], files[names[0]]
    if len(names) > 1 or not _FILE_NAME.fullmatch(names[0]):
        raise CheckpointError(f"the record of {home} names {printable(names)} as {kind}, but it must name one plain file; run 'prtool train' again")
    try:
        content = read_regular(path, digest.size)
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"{path} cannot be read ({cause}); run 'prtool train' again") from cause
    if FileDigest.of(content) != digest:
        raise CheckpointError(f"checksum mismatch: {path} is not what its record says; run 'prtool train' again")
    return content


def remove_others(home: Path, files: Mapping[str, FileDigest]) -> None:
    """Removes the files of earlier checkpoints, and what killed processes left of them.

    Raises:
        StorageError: one cannot be removed.
    """
    with storage_errors(home):
        for path in home.iterdir():
            found = _FILE_NAME.search(path.name)
            if found and found[0] not in files:
                (home / found[0]).unlink(missing_ok=True)
                sweep(home / found[0])
