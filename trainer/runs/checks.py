"""What can be known before PyTorch is imported and a model loaded: names, places and data, by the files that hold them."""

from pathlib import Path

from prtool.errors import ConfigError
from prtool.files import check_output
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.address import parse_data
from prtool.trainer.evaluation.config import EvalConfig
from prtool.trainer.models.loading.source import canonical_name, check_pretrained
from prtool.trainer.runs.inputs import input_paths
from prtool.trainer.runs.place import RUN
from prtool.trainer.runs.record import Record, read_record


def check_training(config: TrainConfig, run: Path) -> None:
    """Finds out whether a run could be trained.

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
    """Finds out whether a run could be evaluated.

    Raises:
        CheckpointError: there is no finished run.
        ConfigError: neither the run nor the call names data; or a keep is out of range, or two are the same number of patches.
        DataError: the data are not there.
    """
    record = read_record(run)
    parse_data(data_of(run, record, data))
    record.prune.distinct_counts(config.keeps)


def data_of(run: Path, record: Record, data: str | Path | None) -> str:
    """The data that are given, else the run's.

    Raises:
        ConfigError: there are neither.
    """
    if not data and not record.data.root:
        raise ConfigError(f"{run} was made without data, so there are no images to measure it on; give --data DIR")
    return str(data or record.data.root)
