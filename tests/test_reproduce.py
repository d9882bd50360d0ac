"""The paper's tables as grids: what is published, which jobs a table has, that it resumes, and what it writes."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from local_model import write_images, write_model

from prtool.bundle import Bundle
from prtool.cli.main import app
from prtool.errors import ConfigError, DataError, StorageError
from prtool.progress import SilentProgress
from prtool.runtime.bench import bench
from prtool.spec import Keep
from prtool.studies.paper.overhead import _times, overhead
from prtool.studies.paper.plan import Study
from prtool.studies.paper.published import in_ablation, in_columns, published, recognise
from prtool.studies.paper.report import make_report, markdown, write_report
from prtool.studies.paper.run import Grid, run_config, share_caches
from prtool.studies.paper.sets import data_sets
from prtool.studies.paper.tables import OURS, TABLES, make_table
from prtool.trainer.data.address import split_data
from prtool.trainer.data.load import load_split
from prtool.trainer.evaluation.report import UNPRUNED, EvalReport, EvalRow
from prtool.trainer.runs.record import RECORD_NAME, Metrics, TokensRecord

PATCHES = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for seed, name in enumerate(("caltech101", "dtd10", "mine")):
        write_images(root / name, {"train": 3, "val": 1, "test": 2}, seed)
    return root


@pytest.fixture
def study(folder):
    return Study(data_sets([str(folder)]), "ViT-B-16", seeds=2, shots=2)


class Quick:
    """Verbs that count their calls: accuracy is a number made of method, keep and seed."""

    def __init__(self, broken=()):
        self.trained, self.evaluated, self.broken = [], [], broken

    def grid(self, cells, study, folder):
        """The cells of a study, with these verbs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("prtool.studies.paper.run.train", self.train)
            patch.setattr("prtool.studies.paper.run.evaluate_run", self.evaluate)
            found = Grid(study, folder, SilentProgress())
            found.run(cells)
            return found

    def train(self, config, run, progress, **options):  # noqa: ARG002
        if any(word in config.data for word in self.broken):
            raise DataError("the class of this set has 1 image; give fewer shots")
        run.mkdir(parents=True, exist_ok=True)
        (run / RECORD_NAME).write_text(json.dumps(config.to_json()))
        self.trained.append(run)
        tokens = TokensRecord(visual=2 if "tokens" in config.phases else 0)
        return SimpleNamespace(tokens=tokens, metrics=Metrics(), prune=SimpleNamespace(patches=PATCHES))

    def evaluate(self, run, data, config, progress):  # noqa: ARG002
        self.evaluated.append((run, data))
        rows = [EvalRow(UNPRUNED, 1.0, 90.0, 10, 2.0, None, 1.0)]
        for method in config.methods:
            rows += [EvalRow(method, keep.value, accuracy_of(method, keep, config.seed), 10, 1.0, None, 0.9) for keep in config.keeps]
        return EvalReport(tuple(rows), "m", "", "", str(data), "test", config.seed, (4,), PATCHES, True)


def accuracy_of(method, keep, seed):
    return 10 * len(method) + keep.value + seed


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [("EViT", "Caltech101", 92.5), ("ToMe", "ImageNet", 58.3), ("Patch Ranking", "UCF101", 65.2), ("ToMe", "EuroSAT", None)],
)
def test_published_figures(row, column, value):
    assert in_columns("main", row, column) == value


def test_published_tables_are_whole():
    assert {len(row) for row in published()["main"]["rows"].values()} == {8}
    assert {len(row) for row in published()["locations"]["rows"].values()} == {8}
    for column in published()["predictor-ablation"]["rows"]:
        for arch in ("mlp", "transformer", "mix-mlp"):
            assert all(in_ablation(column, arch, what) is not None for what in ("match", "1.0", "0.8", "0.7", "0.6", "0.5"))
    assert in_ablation("UCF101", "transformer", "match") == 51.2
    assert in_ablation("DTD", "mix-mlp", "0.5") == 43.0
    for row in published()["locations"]["rows"].values():
        assert sum(row[:-1]) / 7 == pytest.approx(row[-1], abs=0.2)  # two averages are not those of their columns: 78.9 for 78.8, 79.2 for 79.4


def test_data_sets_are_found_and_called_by_the_papers_names(folder, tmp_path):
    found = data_sets([str(folder)])
    assert [(data.name, data.column) for data in found] == [("caltech101", "Caltech101"), ("dtd10", "DTD"), ("mine", "mine")]
    assert recognise("Oxford_Pets").column == "OxfordPets"
    assert recognise("mine") is None
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        data_sets([str(tmp_path)])


def test_a_folder_of_data_sets_with_a_comma_in_its_name(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a,b")
    found = data_sets(split_data(str(tmp_path / "a,b")))
    assert [data.name for data in found] == [data.name for data in data_sets([str(folder)])]
    assert all(load_split(data.address, "test").root.parent == tmp_path / "a,b" for data in found)


def test_a_table_is_the_mean_over_seeds_beside_the_published(study, tmp_path):
    quick = Quick()
    table = make_table("main", study)
    report = make_report(table, quick.grid(table.cells, study, tmp_path), study)
    values = {(entry.row, entry.column): entry for entry in report.entries}
    ours = values["Patch Ranking", "Caltech101"]
    by_hand = [accuracy_of("patch-ranking", study.keep, seed) for seed in (0, 1)]
    assert ours.ours == pytest.approx(sum(by_hand) / 2)
    assert (ours.seeds, ours.published) == (2, 93.4)
    assert values["ToMe", "DTD"].published == 41.5
    assert values["ToMe", "DTD"].seeds == 1
    assert values["ToMe", "mine"].published is None
    assert values["Patch Ranking, one predictor for all sets", "mean"].ours == pytest.approx(sum(by_hand) / 2)
    # Three sets and two seeds: a run each, one for all sets a seed, and for what has no predictor a run each without training.
    assert len(set(quick.trained)) == 3 * 2 + 2 + 3 * 2
    page = markdown(report)
    assert "| Patch Ranking | 131.1 ± 0.7 (93.4*) |" in page  # three classes are not the paper's hundred
    assert "Caltech101: from caltech101, 6 test images of 3 classes; the paper's test part has 2465 images of 100 classes: another task" in page
    assert "budget in GMAC an image: smaller-image 1, merge 1, evit 1, " in page
    assert "mine: not a data set of the paper" in page
    assert "not there: OxfordPets, Flowers102, Food101, FGVCAircraft, UCF101, ImageNet\n" in page
    assert "0.3 % average loss" in page


def test_a_stopped_table_goes_on_where_it_stood(study, tmp_path):
    table = make_table("cross-domain", study)
    first = Quick()
    half = [cell for cell in table.cells if cell.column == "Caltech101"]
    first.grid(half, study, tmp_path)
    second = Quick()
    whole = second.grid(table.cells, study, tmp_path)
    assert len(first.evaluated) == 3 * 2
    assert len(second.evaluated) == 9 * 2 - 3 * 2
    again = Quick()
    assert again.grid(table.cells, study, tmp_path).values == whole.values
    assert again.evaluated == []
    damaged = next((tmp_path / "evaluations").iterdir())
    damaged.write_bytes(damaged.read_bytes().replace(b'"accuracy": 90.0', b'"accuracy": 91.0'))
    again.grid(table.cells, study, tmp_path)
    assert len(again.evaluated) == 1


def test_what_cannot_run_is_named_and_stops_nothing_else(study, tmp_path):
    table = make_table("main", study)
    found = Quick(broken=("dtd10",)).grid(table.cells, study, tmp_path)
    report = make_report(table, found, study)
    assert any("dtd10" in line and "give fewer shots" in line for line in report.missing)
    assert {entry.column for entry in report.entries} == {"Caltech101", "mine"}
    assert "What did not run" in markdown(report)


def test_tuned_figures_of_a_run_without_tokens_are_the_untuned_ones(study, tmp_path):
    class Untuned(Quick):
        def train(self, config, run, progress, **options):
            found = super().train(config, run, progress, **options)
            found.tokens = TokensRecord()
            return found

    table = make_table("main", replace(study, seeds=1))
    found = Untuned().grid(table.cells, study, tmp_path)
    assert found.values["Patch Ranking, tuned tokens", "DTD"] == found.values["Patch Ranking", "DTD"]


def test_a_method_that_a_tower_cannot_run_is_named_and_takes_no_other_with_it(study, tmp_path):
    class NoClassToken(Quick):
        def evaluate(self, run, data, config, progress):
            if {"cls-attention", "evit"} & set(config.methods):
                raise ConfigError("it needs a class token")
            return super().evaluate(run, data, config, progress)

    one = replace(study, sets=study.sets[:1], seeds=1)
    found = NoClassToken().grid(make_table("main", one).cells, one, tmp_path)
    assert len(found.missing) == 2
    assert all("needs a class token" in line for line in found.missing)
    rows = {row for row, _ in found.values}
    assert rows == {"unpruned", "smaller image", "gradual merging", "A-ViT", "ToMe", "random", "Patch Ranking", "Patch Ranking, tuned tokens"}
    assert found.values["ToMe", "Caltech101"] == [accuracy_of("tome", one.keep, 0)]


def test_tokens_that_cannot_be_tuned_take_no_untuned_figure_with_them(study, tmp_path):
    class FewImages(Quick):
        def train(self, config, run, progress, **options):
            if "tokens" in config.phases and "dtd10" in config.data:
                raise DataError("class red has 3 images,\nfewer than 16 shots")
            return super().train(config, run, progress, **options)

    found = FewImages().grid(make_table("main", study).cells, study, tmp_path)
    assert [line for line in found.missing if "dtd10" in line and "fewer than 16 shots" in line]
    assert not any("\n" in line for line in found.missing)
    assert any(line.startswith("patch-ranking-tokens on dtd10 ") for line in found.missing)
    assert ("Patch Ranking, tuned tokens", "DTD") not in found.values
    assert len(found.values["Patch Ranking", "DTD"]) == study.seeds
    assert len(found.values["Patch Ranking, tuned tokens", "mine"]) == study.seeds


def test_the_claim_for_tuned_tokens_stands_beside_tuned_figures_only(study, tmp_path):
    class NoTokens(Quick):
        def train(self, config, run, progress, **options):
            if "tokens" in config.phases:
                raise DataError("too few images")
            return super().train(config, run, progress, **options)

    table = make_table("main", study)
    found = NoTokens().grid(table.cells, study, tmp_path)
    page = markdown(make_report(table, found, study))
    assert "| Patch Ranking |" in page
    assert "0.3 %" not in page


def test_no_figure_at_all_and_a_full_disk_are_errors(study, tmp_path):
    table = make_table("cross-domain", study)
    with pytest.raises(DataError):
        Quick(broken=("caltech101", "dtd10", "mine")).grid(table.cells, study, tmp_path)

    class Full(Quick):
        def evaluate(self, run, data, config, progress):  # noqa: ARG002
            raise StorageError("no space left on the disk")

    with pytest.raises(StorageError, match="no space"):
        Full().grid(table.cells, study, tmp_path)


def test_runs_share_golden_rankings_and_entering_tokens(study, tmp_path):
    quick = Quick()
    table = make_table("predictor-ablation", study)
    quick.grid(table.cells, study, tmp_path)
    runs = set(quick.trained)
    assert len(runs) == 3 * 3 * 2
    for name in ("golden", "tokens"):
        assert {(run / name).resolve() for run in runs} == {tmp_path / "cache" / name}


def test_published_figures_stand_only_beside_the_papers_keep_and_classes(study):
    at = {keep: {cell.row: cell.published for cell in make_table("main", replace(study, keeps=(Keep.ratio(keep),))).cells} for keep in (0.6, 0.5)}
    assert at[0.6]["ToMe"] is None  # the last set, which the paper does not have
    one = {keep: make_table("main", replace(study, sets=study.sets[:1], keeps=(Keep.ratio(keep),))).cells for keep in (0.6, 0.5)}
    assert {cell.row: cell.published for cell in one[0.6]}["ToMe"] == 91.5
    assert {cell.row: cell.published for cell in one[0.5]}["ToMe"] is None
    whole = replace(study.sets[0], classes=100)
    assert whole.is_whole
    assert not study.sets[0].is_whole


def test_settings_reach_the_run(study):
    table = make_table("locations", replace(study, settings={"fit.loss": "kl"}))
    job = next(cell.job for cell in table.cells if cell.row == "4, 6, 8, 10" and cell.job.seed == 1)
    config = run_config(job, replace(study, settings={"fit.loss": "kl"}))
    assert (config.prune.locations, config.fit.loss) == ((4, 6, 8, 10), "kl")
    assert (config.seed, config.fit.seed, config.tokens.seed, config.tokens.shots) == (1, 1, 1, 2)
    assert config.templates == ("a photo of a {}.",)


def test_an_incomplete_set_is_named_and_nothing_else_is_taken_for_it(folder, tmp_path):
    write_images(tmp_path / "own", {"train": 2, "val": 1})
    with pytest.raises(DataError, match="test"):
        data_sets([str(tmp_path / "own")])
    (tmp_path / "dtd").mkdir()
    with pytest.raises(DataError, match="dtd"):
        data_sets([str(tmp_path / "dtd")])
    write_images(tmp_path / "sets" / "good", {"train": 2, "val": 1, "test": 1})
    (tmp_path / "sets" / "eurosat").mkdir()
    with pytest.raises(DataError, match="eurosat"):
        data_sets([str(tmp_path / "sets")])
    with pytest.raises(DataError, match="DTD"):
        data_sets([str(folder / "dtd10"), f"dtd:{folder / 'dtd10'}"])


def test_a_moved_folder_keeps_its_caches(tmp_path):
    share_caches(tmp_path / "old" / "runs" / "a", tmp_path / "old")
    (tmp_path / "old" / "cache" / "golden" / "kept").touch()
    (tmp_path / "old").rename(tmp_path / "new")
    run = tmp_path / "new" / "runs" / "a"
    assert (run / "golden" / "kept").is_file()
    (run / "tokens").unlink()
    (run / "tokens").symlink_to(tmp_path / "old" / "cache" / "tokens")
    share_caches(run, tmp_path / "new")
    assert (run / "tokens").resolve() == tmp_path / "new" / "cache" / "tokens"


def test_every_seed_and_row_is_measured_on_the_same_images(study, tmp_path):
    subsets = set()

    class Asked(Quick):
        def evaluate(self, run, data, config, progress):
            subsets.add((config.images, config.subset_seed))
            return super().evaluate(run, data, config, progress)

    part, asked = replace(study, images=2), Asked()
    asked.grid(make_table("main", part).cells, part, tmp_path)
    assert subsets == {(2, 0)}


def test_each_way_to_train_is_a_run_of_its_own(study, tmp_path):
    quick, one = Quick(), replace(study, sets=study.sets[:1], seeds=1)
    table = make_table("training-ablation", one)
    found = quick.grid(table.cells, one, tmp_path)
    ways = {cell.row.partition(": ")[0] for cell in table.cells}
    assert len(set(quick.trained)) == len(ways) == len(table.cells) / 2
    assert found.values["leave-one-out, loss kl: cosine x 100", "Caltech101"] == [90.0]
    configs = {cell.row: run_config(cell.job, one) for cell in table.cells}
    assert configs["distilled, auxiliary norm: accuracy"].scorer.auxiliary == ("norm",)
    ranked = configs["leave-one-out, groups of 4 x 4: accuracy"]
    assert (ranked.objective, ranked.phases, ranked.golden.group, ranked.scorer.checkerboard) == ("ranking", ("rank", "predictor"), 4, 2.0)
    with pytest.raises(ConfigError, match=r"golden\.group"):
        make_table("training-ablation", replace(one, settings={"golden.group": 2}))


def test_a_golden_ranking_comes_before_the_predictor_that_learns_it(study):
    ranked = replace(study, settings={"objective": "ranking"})
    phases = {run_config(cell.job, ranked).phases for cell in make_table("main", ranked).cells}
    assert phases == {("none",), ("rank", "predictor", "tokens")}


def test_several_keeps_stand_in_one_table_from_one_evaluation_each(study, tmp_path):
    quick = Quick()
    many = replace(study, keeps=(Keep.ratio(0.6), Keep.ratio(0.5)), seeds=1)
    found = quick.grid(make_table("main", many).cells, many, tmp_path)
    for keep in many.keeps:
        assert found.values[f"ToMe, keep {keep}", "Caltech101"] == [accuracy_of("tome", keep, 0)]
    published_at = {cell.row: cell.published for cell in make_table("main", many).cells if cell.column == "Caltech101"}
    assert (published_at["ToMe, keep 0.6"], published_at["ToMe, keep 0.5"]) == (91.5, None)
    assert len(quick.evaluated) == 3 * 3


def test_cls_attention_runs_once_and_its_unpruned_row_waits_for_no_predictor(study, tmp_path):
    quick = Quick(broken=("mine",))
    found = quick.grid(make_table("cls-attention", study).cells, study, tmp_path)
    keep = Keep.ratio(0.5)
    for row, method, seeds in (("Patch Ranking", OURS, (0, 1)), ("random", "random", (0, 1)), ("CLS attention", "cls-attention", (0,))):
        assert found.values[f"{row}, keep {keep}", "Caltech101"] == [accuracy_of(method, keep, seed) for seed in seeds]
    assert found.values["unpruned", "Caltech101"] == [90.0]


@pytest.mark.parametrize(
    ("table", "given"),
    [
        ("cls-attention", "--keep=0.5"),
        ("predictor-ablation", "--keep=0.5"),
        ("overhead", "--seeds=2"),
        ("overhead", "--row=x"),
        ("overhead", "--images=5"),
    ],
)
def test_an_option_that_changes_nothing_in_a_table_is_refused(folder, table, given):
    found = CliRunner().invoke(app, ["reproduce", table, "--data", str(folder), given])
    assert found.exit_code == 1
    assert re.search(f"{given.split('=')[0]}.*{table}", found.output)


def test_rows_that_were_not_asked_for_train_nothing(study, tmp_path):
    quick = Quick()
    some = replace(study, rows=("ToMe", "*for all sets"))
    table = make_table("main", some)
    assert {cell.row for cell in table.cells} == {"ToMe", "Patch Ranking, one predictor for all sets"}
    quick.grid(table.cells, some, tmp_path)
    # ToMe without training on each set, and the general predictor of each seed.
    assert len(set(quick.trained)) == 3 + 2


def test_one_location_at_the_macs_of_four(study):
    """By hand: tokens times blocks of location 4 alone equal those of 4, 6, 8, 10 at the final keep."""
    (job,) = {cell.job for cell in make_table("locations", replace(study, sets=study.sets[:1], seeds=1)).cells if "MACs" in cell.row}
    kept = [1 - 0.4 * part / 4 for part in (1, 1, 2, 2, 3, 3, 4, 4, 4)]
    assert job.keeps[0].value == pytest.approx(sum(kept) / 9, abs=1e-3)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_written_in_four_forms(study, tmp_path, name):
    table = make_table(name, replace(study, seeds=1))
    report = make_report(table, Quick().grid(table.cells, study, tmp_path), study)
    files = write_report(report, tmp_path / name)
    assert [file.suffix for file in files] == [".md", ".csv", ".json", ".png"]
    assert json.loads(files[2].read_text())["results"][0]["ours"] == report.entries[0].ours
    assert files[1].read_text().count("\n") == len(report.entries) + 1
    assert files[3].read_bytes().startswith(b"\x89PNG")


def test_bad_requests_are_refused(study):
    with pytest.raises(ConfigError, match="layers"):
        make_table("layer", study)
    with pytest.raises(ConfigError, match="seeds = 0"):
        replace(study, seeds=0)
    with pytest.raises(ConfigError):
        replace(study, sets=())
    with pytest.raises(ConfigError, match="--seeds"):
        replace(study, settings={"seed": 1})
    with pytest.raises(ConfigError, match="prune"):
        make_table("layers", replace(study, settings={"prune.locations": [2]}))
    with pytest.raises(ConfigError, match="main"):
        make_table("layers", replace(study, keeps=(Keep.ratio(0.6), Keep.ratio(0.5))))
    with pytest.raises(ConfigError, match=r"unpruned.*EViT"):
        make_table("main", replace(study, rows=("EVT",)))
    with pytest.raises(ConfigError, match="keep = 8"):
        make_table("locations", replace(study, keeps=(Keep.count(8),)))
    found = CliRunner().invoke(app, ["reproduce", "mian", "--data", "x"])
    assert found.exit_code == 1
    assert re.search("mian.*main", found.output)


@pytest.fixture
def tiny(folder, tmp_path):
    """A study whose runs take seconds."""
    small = {"scorer.channels": 8, "scorer.token_hidden": 4, "scorer.channel_hidden": 16, "scorer.heads": 2}
    small |= {"prune.locations": [2], "distill.steps": 3, "distill.batch": 4, "tokens.visual": 1, "tokens.epochs": 1, "tokens.batch": 4}
    return Study(
        data_sets([str(folder / "caltech101")]), write_model(tmp_path / "model", layers=4), keeps=(Keep.ratio(0.5),), shots=2, settings=small
    )


def test_overhead_is_read_from_manifest_and_benchmark(tiny, tmp_path, monkeypatch):
    """A real run, bundle and benchmark of some calls; MACs against the bundle's own bound."""

    def quick(bundle, asked, progress):
        return bench(bundle, replace(asked, budget_s=1.0, warmup_rounds=1), progress)

    monkeypatch.setattr("prtool.studies.paper.overhead.bench", quick)
    report = overhead(tiny, tmp_path / "out", "ort", SilentProgress())
    values = {(entry.row, entry.column): entry.ours for entry in report.entries}
    (path,) = (tmp_path / "out" / "bundles").iterdir()
    manifest = Bundle.open(path).manifest
    assert values["everything at this keep", "MACs"] == pytest.approx(100 / manifest.theoretical_speedup(manifest.default_keep))
    assert 0 < values["predictor", "MACs"] < 100
    for batch in (1, 8):
        assert values["selection at keep 0.5, split", f"time, batch {batch}"] > 0
        assert values["all at keep 0.5", f"time, batch {batch}"] > 0
    assert values["peak memory of the run, MiB", "time"] > 0
    assert write_report(report, tmp_path / "written")[0].read_text().startswith("# What pruning costs")


def test_overhead_refuses_its_keep_before_anything_is_trained(tiny, tmp_path):
    with pytest.raises(ConfigError):
        overhead(replace(tiny, keeps=(Keep.ratio(1.0),)), tmp_path / "out", "ort", SilentProgress())
    assert not (tmp_path / "out").exists()


def test_time_and_energy_above_the_unpruned_count_alike():
    def row(k, keep, speedup, joules, is_baseline=False):
        return SimpleNamespace(
            batch=1, k=k, keep=keep, mode="fused", speedup=speedup, joules_per_image=joules, is_baseline=is_baseline, p50_ms=10.0, stages_ms={}
        )

    rows = [row(0, 1.0, 1.0, 2.0, is_baseline=True), row(16, 1.0, 1 / 1.03, 2.06), row(8, 0.5, 2.0, 1.0)]
    values = [(entry.column, pytest.approx(entry.ours)) for entry in _times(SimpleNamespace(rows=rows))]
    assert values == [("time, batch 1", 3.0), ("energy, batch 1", 3.0), ("time, batch 1", 50.0), ("energy, batch 1", 50.0)]


def test_the_real_verbs_make_a_table(tiny, tmp_path):
    """Tiny, but nothing is replaced: runs, tokens, evaluation of every method, files."""
    study = tiny
    table = make_table("main", study)
    grid = Grid(study, tmp_path, SilentProgress())
    grid.run(table.cells)
    report = make_report(table, grid, study)
    assert report.missing == ()
    rows = {entry.row for entry in report.entries}
    ours = {"unpruned", "smaller image", "gradual merging", "Patch Ranking", "Patch Ranking, tuned tokens"}
    assert ours | {"EViT", "A-ViT", "ToMe", "CLS attention", "random"} == rows
    assert all(0 <= entry.ours <= 100 for entry in report.entries)
