"""TensorRT-RTX takes what `prtool export` writes: real attention, each precision, each kind of tower. Nothing is run: that needs a GPU."""

from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; pip install '.[tensorrt-rtx]'")
pytest.importorskip("onnxscript", reason="exporting needs onnxscript; pip install '.[export]'")
from click.testing import CliRunner
from export_sources import Progressive, make_source, merging_source, progressive_source
from hugging_face_models import write_checkpoint

from prtool.bundle import Bundle
from prtool.cli.main import app
from prtool.engines.base import BuildOptions, EngineOptions, ShapeRange
from prtool.export.write import ExportOptions, write_bundle
from prtool.progress import SilentProgress
from prtool.runtime.build import build_bundle
from prtool.spec import Keep

IMAGE_ROLES = {"pre", "post", "fused", "full"}


def build_all(bundle: Bundle, precision: str, cache: Path, build: BuildOptions, roles: set[str] = IMAGE_ROLES) -> int:
    """The number of engines that exist on disk afterwards."""
    report = build_bundle(bundle, "trt-rtx", precision, EngineOptions(cache=cache, build=build), SilentProgress())
    assert {item.role for item in report.graphs} == roles
    assert all(item.built for item in report.graphs)
    return len(list(cache.glob("*/engine.plan")))


@pytest.mark.parametrize("kind", ["cls", pytest.param("siglip", marks=pytest.mark.slow)])
def test_every_precision_of_a_small_tower_builds(kind: str, tmp_path: Path) -> None:
    write_bundle(make_source(kind), tmp_path / "bundle", ExportOptions(Keep.ratio(0.6), ("fp32", "fp16", "bf16")), SilentProgress())
    bundle, build = Bundle.open(tmp_path / "bundle"), BuildOptions(batch=ShapeRange(1, 2, 4))
    counts = [build_all(bundle, precision, tmp_path / "cache", build) for precision in ("fp32", "fp16", "bf16")]
    assert counts == [4, 8, 12]


def test_several_locations_and_learnable_tokens_build(tmp_path: Path) -> None:
    """The order of the first location at one, a transformer at the next; and one narrow profile for each keep."""
    source = progressive_source("cls", Progressive((2, 3, 4), ("first", "own"), tokens=2, layers=3))
    write_bundle(source, tmp_path / "bundle", ExportOptions(Keep.ratio(0.6), ("fp16",)), SilentProgress())
    bundle, roles = Bundle.open(tmp_path / "bundle"), IMAGE_ROLES | {"mid_1", "mid_2"}
    batch = ShapeRange(1, 2, 4)
    assert build_all(bundle, "fp32", tmp_path / "cache", BuildOptions(batch=batch), roles) == 6
    assert build_all(bundle, "fp16", tmp_path / "cache", BuildOptions(batch=batch), roles) == 12
    assert build_all(bundle, "fp32", tmp_path / "narrow", BuildOptions(batch=batch, keeps=(10, 4)), roles) == 6


def test_merging_builds(tmp_path: Path) -> None:
    """FUSED with a merging in two blocks, and one with registers, for every number of pairs that the profile's keeps need."""
    for kind, locations in (("cls", (2,)), ("dinov2 registers", (2,))):
        write_bundle(merging_source(kind, locations), tmp_path / kind, ExportOptions(Keep.ratio(0.7), ("fp16",)), SilentProgress())
        bundle, build = Bundle.open(tmp_path / kind), BuildOptions(batch=ShapeRange(1, 2, 4))
        assert build_all(bundle, "fp32", tmp_path / f"{kind} cache", build, {"fused", "full"}) == 2
        assert build_all(bundle, "fp16", tmp_path / f"{kind} cache", build, {"fused", "full"}) == 4


@pytest.mark.parametrize("keeps", [(), pytest.param((14, 9), marks=pytest.mark.slow)])
def test_merging_in_several_blocks_builds(tmp_path: Path, keeps: tuple[int, ...]) -> None:
    """With the optimal counts that the bundle's default keep has at each location, and with those of narrow profiles."""
    source = merging_source("cls", (1, 3))
    write_bundle(source, tmp_path / "bundle", ExportOptions(Keep.ratio(0.6), ("fp16",)), SilentProgress())
    bundle, build = Bundle.open(tmp_path / "bundle"), BuildOptions(batch=ShapeRange(1, 2, 4), keeps=keeps)
    assert build_all(bundle, "fp32", tmp_path / "cache", build, {"fused", "full"}) == 2
    assert build_all(bundle, "fp16", tmp_path / "cache", build, {"fused", "full"}) == 4


def exported(name: str, folder: Path, precisions: str) -> Bundle:
    """A bundle of a real architecture with random weights, by the commands that a person types."""
    for call in (
        ["train", "--model", name, "--phase", "none", "-o", folder / "run"],
        ["export", folder / "run", "--keep", "0.6", "--precision", precisions, "-o", folder / "bundle"],
    ):
        result = CliRunner().invoke(app, [str(word) for word in call])
        assert result.exit_code == 0, result.output
    return Bundle.open(folder / "bundle")


def test_rotary_positions_and_patch_tokens_build(tmp_path: Path) -> None:
    """Gathered rows of the rotary table, and the graph that also gives tokens and their patches."""
    write_bundle(make_source("eva02"), tmp_path / "bundle", ExportOptions(Keep.ratio(0.6), patch_tokens=-2), SilentProgress())
    bundle, build = Bundle.open(tmp_path / "bundle"), BuildOptions(batch=ShapeRange(1, 2, 4))
    assert build_all(bundle, "fp32", tmp_path / "cache", build, IMAGE_ROLES | {"tokens"}) == 5


def test_a_checkpoint_of_transformers_builds(tmp_path: Path) -> None:
    name = write_checkpoint(tmp_path / "checkpoint")
    bundle, build = exported(name, tmp_path, "fp32"), BuildOptions(batch=ShapeRange(1, 2, 4))
    assert build_all(bundle, "fp32", tmp_path / "cache", build) == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_graph_of_vit_b_16_builds_in_fp32_and_fp16(tmp_path: Path) -> None:
    bundle = exported("ViT-B-16", tmp_path, "fp32,fp16")
    assert build_all(bundle, "fp32", tmp_path / "cache", BuildOptions()) == 4
    assert build_all(bundle, "fp16", tmp_path / "cache", BuildOptions()) == 8
    # Half the bytes for the weights shows that the half-precision graphs were not built in float32.
    sizes = {
        item.role: item.size for item in build_bundle(bundle, "trt-rtx", "fp16", EngineOptions(cache=tmp_path / "cache"), SilentProgress()).graphs
    }
    whole = {
        item.role: item.size for item in build_bundle(bundle, "trt-rtx", "fp32", EngineOptions(cache=tmp_path / "cache"), SilentProgress()).graphs
    }
    assert all(sizes[role] < 0.65 * whole[role] for role in IMAGE_ROLES)
    # One narrow profile for each keep.
    narrow = EngineOptions(cache=tmp_path / "narrow", build=BuildOptions(keeps=(118, 157)))
    report = build_bundle(bundle, "trt-rtx", "fp32", narrow, SilentProgress())
    assert {item.role for item in report.graphs} == IMAGE_ROLES


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_graph_of_vit_l_14_builds(tmp_path: Path) -> None:
    """Weights of 1.2 GB a graph, in one file with it."""
    bundle = exported("ViT-L-14", tmp_path, "fp32")
    assert build_all(bundle, "fp32", tmp_path / "cache", BuildOptions(level=0)) == 4
