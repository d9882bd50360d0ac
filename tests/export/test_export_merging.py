"""An encoder that merges patches, from PyTorch to a bundle of FUSED and FULL: what is written, how near it is, what is compared."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from export_sources import merging_source

from prtool.bundle import Bundle
from prtool.engines.base import GraphOptions
from prtool.engines.registry import open_engine
from prtool.errors import KeepError
from prtool.export.precision.build import at_precision, calibration_samples, stages
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.probe import Probe, matching_margin
from prtool.export.write import ExportOptions, write_bundle
from prtool.spec import Keep
from prtool.trainer.models.merging import MergedEncoder, match
from prtool.trainer.models.merging import matching_margin as margin_of


def images(source: ExportSource, count: int, seed: int) -> torch.Tensor:
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=source.pruned.tower.image_size, mode="bilinear")


@pytest.fixture(scope="module")
def source() -> ExportSource:
    return merging_source("cls", classes=True)


@pytest.fixture(scope="module")
def bundle(source: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = ExportOptions(Keep.count(10), ("fp32", "bf16"), pixels=Pixels(images(source, 6, 1)), held_out=Pixels(images(source, 8, 2)))
    write_bundle(source, tmp_path_factory.mktemp("merging") / "bundle", options)
    return Bundle.open(tmp_path_factory.getbasetemp() / "merging0" / "bundle")


def test_only_whole_graphs_are_written(source: ExportSource, bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert {precision: set(graphs) for precision, graphs in manifest.graphs.items()} == {"fp32": {"fused", "full", "text"}, "bf16": {"fused", "full"}}
    assert manifest.prune == source.spec and manifest.prune.method == "merge" and manifest.model.scorer == ""
    assert manifest.keep_range == (source.spec.least_keep, 16) == (6, 16)
    assert not [name for name in manifest.parity if name.endswith(("index_agreement", "score_error"))]
    assert manifest.parity["cosine"] > 0.99999 and manifest.parity["bf16.mean_cosine"] > 0.998


@pytest.mark.parametrize("engine", ["ort", "openvino", "torch"])
def test_fused_is_pytorch_at_every_batch_and_count(engine: str, source: ExportSource, bundle: Bundle) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed; pip install '.[openvino]'")
    graph = bundle.graph("fused")
    opened = open_engine(engine, bundle.file(graph.file), graph.inputs, GraphOptions(threads=2))
    for batch, counts in ((1, (16, 16)), (3, (16, 15)), (2, (12, 9)), (3, (8, 4)), (1, (8, 8))):
        pixels = images(source, batch, batch)
        found = opened.run({"pixels": pixels.numpy(), "k": np.array(counts, np.int64)})["embedding"]
        with torch.no_grad():
            np.testing.assert_allclose(found, source.pruned.encode(pixels, counts).numpy(), atol=2e-6, err_msg=f"batch {batch}, counts {counts}")
    opened.close()


def test_the_metric_stays_in_float32(source: ExportSource) -> None:
    plain = stages(source)
    for role, model in at_precision(source, plain, "bf16").items():
        for node in model.graph:
            if any(value.name == "metric" for value in node.outputs):
                assert node.op_type == "ReduceMean" and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT, role


def test_calibration_samples_are_what_the_graphs_are_given(source: ExportSource) -> None:
    pixels = images(source, 10, 5)
    samples = calibration_samples(source, Pixels(pixels), (10, 6))
    assert {role: [{name: array.shape for name, array in call.items()} for call in calls] for role, calls in samples.items()} == {
        "full": [{"pixels": (8, 3, 64, 64)}, {"pixels": (2, 3, 64, 64)}],
        "pre": [{"pixels": (8, 3, 64, 64)}, {"pixels": (2, 3, 64, 64)}],
        "mid_1": [{"tokens": (8, 14, 64), "bias": (8, 14)}, {"tokens": (2, 12, 64), "bias": (2, 12)}],
        "post": [{"tokens": (8, 11, 64), "bias": (8, 11)}, {"tokens": (2, 7, 64), "bias": (2, 7)}],
    }
    assert samples["pre"][0]["pixels"].tobytes() == pixels[:8].numpy().tobytes()
    sizes = np.exp(samples["post"][0]["bias"])
    np.testing.assert_allclose(sizes.sum(axis=1), 17.0, rtol=1e-5)


def test_the_probe_takes_the_images_with_the_clearest_pairs(source: ExportSource) -> None:
    pixels = images(source, 9, 7)
    probe, encoder = Probe.choose(source, Pixels(pixels), default_keep=10), source.pruned
    assert isinstance(encoder, MergedEncoder) and probe.counts == (16, 10, 6)
    margins = torch.cat([matching_margin(encoder, image[None], probe.counts) for image in pixels])
    chosen = torch.cat([matching_margin(encoder, image[None], probe.counts) for image in probe.pixels.own])
    torch.testing.assert_close(chosen, margins.sort(descending=True).values[:3], rtol=1e-4, atol=1e-7)


def test_within_the_margin_the_pairs_stay_and_behind_it_they_change() -> None:
    """Noise on the similarity of less than half of the margin changes no pair; the margin is the least change that does."""
    generator = torch.Generator().manual_seed(3)
    metric, r = torch.randn(1, 15, 4, generator=generator, dtype=torch.float64), 3
    unit = torch.nn.functional.normalize(metric, dim=-1)
    alike = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2))[0, 1:]
    best = alike.amax(dim=1).sort(descending=True)
    gaps = [float(best.values[r - 1] - best.values[r])]
    for even in best.indices[:r]:
        first, second = alike[even].sort(descending=True).values[:2]
        gaps.append(float(first - second))
    assert float(margin_of(metric, r)) == pytest.approx(min(gaps), rel=1e-12)
    assert float(margin_of(metric, 0)) == float("inf")
    assert sorted(match(metric, r).merging[0].tolist()) == sorted((best.indices[:r] + 1).tolist())


def test_a_keep_out_of_reach_is_an_error_before_any_graph_is_made(source: ExportSource, tmp_path: Path) -> None:
    with pytest.raises(KeepError, match="5 of 16"):
        write_bundle(source, tmp_path / "bundle", ExportOptions(Keep.count(5)))
    assert not list(tmp_path.iterdir())
