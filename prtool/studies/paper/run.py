"""Runs the grid of a table: what is finished is kept, and what cannot run is named without stopping the rest."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prtool.errors import ConfigError, PrtoolError, StorageError
from prtool.files import sha256_file, storage_errors
from prtool.progress import Progress
from prtool.records import from_plain, to_plain
from prtool.runtime.machine import library_versions
from prtool.store import Store, digest
from prtool.studies.paper.plan import Cell, DataSet, Job, Study
from prtool.trainer.config import RANKING, TrainConfig
from prtool.trainer.data.load import load_split, templates_for
from prtool.trainer.evaluation.evaluate import EvalConfig, evaluate_run
from prtool.trainer.evaluation.report import UNPRUNED, EvalReport
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.record import RECORD_NAME
from prtool.trainer.train import train

SCHEMA = 2
_TUNED = "-tokens"
_TOKENS = "tokens"
_SUBSET_SEED = 0
"""Of a part of the test images: every row and seed of a table is measured on the same."""
_CACHES = ("golden", "tokens")
"""Folders of a run that are decided by images and model alone, their content named after all that it depends on."""


class Grid:
    """The jobs of a table: each is trained and evaluated once, and what cannot run is named.

    Attributes:
        values: by row and column, one a seed.
        missing: the reasons of what could not run, each once.
        gmacs: 10^9 MAC of one image, of the unpruned encoder under "unpruned" and of every method under its name, least and most.
    """

    def __init__(self, study: Study, folder: Path, progress: Progress) -> None:
        """Nothing runs yet.

        Args:
            study: what all jobs share.
            folder: runs go to `folder/runs`, evaluations to `folder/evaluations`; both are reused, also by other tables.
            progress: receives the stages of each job.
        """
        self.study, self.folder, self.progress = study, folder, progress
        self.values: dict[tuple[str, str], list[float]] = {}
        self.missing: list[str] = []
        self.gmacs: dict[str, tuple[float, float]] = {}

    def run(self, cells: Sequence[Cell]) -> None:
        """Trains and evaluates what the cells need.

        Raises:
            StorageError: something cannot be written; finished jobs stay.
            PrtoolError: no job could run; the first one's error.
        """
        results, first = {}, None
        for job in dict.fromkeys(cell.job for cell in cells):
            try:
                results[job] = self._result(job)
            except StorageError:
                raise
            except PrtoolError as error:
                self._miss(job, error)
                first = first or error
                continue
            for row in results[job][1].rows:
                least, most = self.gmacs.get(row.method, (row.gmacs, row.gmacs))
                self.gmacs[row.method] = min(least, row.gmacs), max(most, row.gmacs)
        if not results and first is not None:
            raise first
        for cell in cells:
            value = cell.read(*results[cell.job]) if cell.job in results else None
            if value is not None:
                self.values.setdefault((cell.row, cell.column), []).append(value)

    def _miss(self, job: Job, error: PrtoolError) -> None:
        line = f"{_title(job)}: {' '.join(str(error).split())}"
        if line not in self.missing:
            self.missing.append(line)

    def _result(self, job: Job) -> tuple[Checkpoint, EvalReport]:
        """The run of a job and its evaluation. Where only its tokens cannot be tuned, the rest is evaluated all the same."""
        try:
            run, checkpoint = trained(job, self.study, self.folder, self.progress)
        except StorageError:
            raise
        except PrtoolError as error:
            without = _without_tokens(job)
            if without is None:
                raise
            result = self._result(without)
            self._miss(replace(job, methods=tuple(name for name in job.methods if name.endswith(_TUNED))), error)
            return result
        tuned = bool(checkpoint.tokens.visual or checkpoint.tokens.text)
        # A run whose tokens were no better than none has none: its tuned figures are the untuned ones.
        methods = tuple(name for name in job.methods if tuned or not name.endswith(_TUNED))
        return checkpoint, _with_untuned(self._evaluated(run, replace(job, methods=methods)), job.methods)

    def _evaluated(self, run: Path, job: Job) -> EvalReport:
        """The evaluation of a job's methods; where one does not suit the tower, each alone, and those that do not are named."""
        asked = EvalConfig(
            keeps=job.keeps,
            methods=job.methods,
            images=self.study.images,
            seed=job.seed,
            subset_seed=_SUBSET_SEED,
            templates=self.study.templates or _templates(job.test_on),
            unpruned=self.folder / "cache" / "unpruned",
        )
        key = _evaluation_key(run, job, asked)
        store, name = Store(self.folder / "evaluations", key), f"{key[:16]}.json"
        found = store.read(name)
        if found is not None:
            report: EvalReport = from_plain(EvalReport, found)
            return report
        try:
            report = evaluate_run(run, job.test_on.address, asked, self.progress)
        except ConfigError:
            if len(job.methods) < 2:
                raise
            return self._one_by_one(run, job)
        store.write(name, to_plain(report))
        return report

    def _one_by_one(self, run: Path, job: Job) -> EvalReport:
        reports, errors = [], []
        for name in job.methods:
            alone = replace(job, methods=(name,))
            try:
                reports.append(self._evaluated(run, alone))
            except ConfigError as cause:
                errors.append((alone, cause))
        if not reports:
            raise errors[0][1]
        for unsuited, error in errors:
            self._miss(unsuited, error)
        rows = [row for report in reports[1:] for row in report.rows if row.method != UNPRUNED]
        return replace(reports[0], rows=(*reports[0].rows, *rows))


def run_config(job: Job, study: Study) -> TrainConfig:
    """The settings of a job's run: the study's, then the job's, then the seed.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    templates = study.templates or (_templates(job.train_on[0]) if len(job.train_on) == 1 else ())
    config = TrainConfig.load(
        None,
        {
            "model": study.model,
            "pretrained": study.pretrained,
            "data": ",".join(data.address for data in job.train_on),
            "templates": templates,
            "tokens.shots": study.shots,
            **study.settings,
            **dict(job.settings),
            "seed": job.seed,
            "fit.seed": job.seed,
            "tokens.seed": job.seed,
        },
    )
    # A predictor that learns a golden ranking, because the study sets objective = "ranking", needs it first.
    ranks = config.objective == RANKING and "predictor" in config.phases and "rank" not in config.phases
    return replace(config, phases=("rank", *config.phases)) if ranks else config


def trained(job: Job, study: Study, folder: Path, progress: Progress) -> tuple[Path, Checkpoint]:
    """The run of a job: its folder and checkpoint.

    Raises:
        Everything that `train` raises.
    """
    config = run_config(job, study)
    run = run_folder(config, job.train_on, folder)
    share_caches(run, folder)
    # The folder is named after all settings: what is there already is trained again only where the data have changed.
    return run, train(config, run, progress, overwrite=True)


def share_caches(run: Path, folder: Path) -> None:
    """Makes the caches of a new run links to those of all runs: golden rankings are the slow part, and seeds and predictors share them.

    Raises:
        StorageError: a link cannot be made.
    """
    with storage_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        for name in _CACHES:
            shared = folder / "cache" / name
            shared.mkdir(parents=True, exist_ok=True)
            link = run / name
            if link.is_symlink() and not link.exists():
                link.unlink()
            if not link.exists():
                # Relative, so that a folder that is moved or copied keeps its own cache.
                link.symlink_to(os.path.relpath(shared.resolve(), run.resolve()), target_is_directory=True)


def run_folder(config: TrainConfig, train_on: Sequence[DataSet], folder: Path) -> Path:
    """The folder of a run, named after its settings.

    Tokens are tuned in the run of their predictor. A run with a ranking is another than one without: matching rates would
    change the checkpoint that evaluations are named after. A run without training stands alone: training would replace its
    checkpoint, and with that what was evaluated with it.
    """
    plain = {name: value for name, value in config.to_json().items() if name != "phases"}
    kind = "none" if config.phases == ("none",) else "rank" in config.phases
    return folder / "runs" / f"{'-'.join(data.name for data in train_on)}-{digest(plain, kind)[:12]}"


def _without_tokens(job: Job) -> Job | None:
    """The job without tuned tokens; None where it has none, or nothing else."""
    phases, plain = dict(job.settings).get("phases", ()), tuple(name for name in job.methods if not name.endswith(_TUNED))
    if not isinstance(phases, tuple) or _TOKENS not in phases or not plain:
        return None
    settings = {**dict(job.settings), "phases": tuple(name for name in phases if name != _TOKENS)}
    return replace(job, settings=tuple(settings.items()), methods=plain)


def _evaluation_key(run: Path, job: Job, asked: EvalConfig) -> str:
    """Names an evaluation after everything that it depends on."""
    checkpoint = sha256_file(run / RECORD_NAME)
    images = load_split(job.test_on.address, "test").take(asked.images, asked.drawn_by)
    keeps = [str(keep) for keep in job.keeps]
    return digest(SCHEMA, checkpoint, images.digest(), images.classnames, keeps, job.methods, asked.seed, asked.templates, library_versions())


def _with_untuned(report: EvalReport, methods: Sequence[str]) -> EvalReport:
    rows = list(report.rows)
    for name in methods:
        if name.endswith(_TUNED) and name not in report.methods:
            rows += [replace(row, method=name) for row in report.of(name.removesuffix(_TUNED))]
    return replace(report, rows=tuple(rows))


def _templates(data: DataSet) -> tuple[str, ...]:
    return templates_for(data.address) if data.known is None else (data.known.template,)


def _title(job: Job) -> str:
    learned = "+".join(data.name for data in job.train_on)
    settings = ", ".join(f"{name} = {value}" for name, value in job.settings)
    return f"{', '.join(job.methods)} on {job.test_on.name} (run on {learned}, seed {job.seed}, {settings})"
