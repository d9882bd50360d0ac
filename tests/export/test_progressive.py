"""Several locations and learnable tokens: from PyTorch to bundles that every engine runs alike."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_sources import Progressive, progressive_source
from safetensors.numpy import load_file
from torch.nn import functional

from prtool.bundle import Bundle
from prtool.engines.registry import ENGINES, list_engines
from prtool.errors import ConfigError, EngineUnavailable, ParityError
from prtool.export.graphs.modules import image_graphs
from prtool.export.precision.build import calibration_samples
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.agreement import verify_with_model
from prtool.export.validation.parity import compare
from prtool.export.validation.probe import Probe
from prtool.export.write import ExportOptions, write_bundle
from prtool.runtime.encoder import Encoder
from prtool.runtime.verify import verify
from prtool.spec import Keep

SHAPES = {
    "deep tokens from block 1": ("cls", Progressive((2, 4), ("own",), tokens=3, layers=4)),
    "tokens from the location": ("siglip", Progressive((2, 3), ("first",), tokens=2, layers=2, first=2, drop_ratios=(1, 3))),
    "three locations": ("dinov2 registers", Progressive((1, 2, 3), ("first", "own"))),
}
CPU_ENGINES = ["ort", "openvino", "torch"]


def images(source: ExportSource, number: int, seed: int) -> torch.Tensor:
    """Smooth pictures: noise has no structure that a scale could follow."""
    coarse = torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=source.pruned.tower.image_size, mode="bicubic")


@pytest.fixture(scope="module", params=SHAPES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportSource, Bundle]:
    """A source and its bundle; parity with PyTorch passed, or there would be none."""
    source, out = progressive_source(*SHAPES[request.param]), tmp_path_factory.mktemp("progressive") / "bundle"
    write_bundle(source, out, ExportOptions(Keep.ratio(0.6), pixels=Pixels(images(source, 6, 1))))
    return source, Bundle.open(out)


def test_the_manifest_says_how_it_prunes(exported: tuple[ExportSource, Bundle]) -> None:
    source, bundle = exported
    manifest = bundle.manifest
    mids = {f"mid_{place}" for place in range(1, len(source.spec.locations))}
    assert manifest.prune == source.spec
    assert set(manifest.graphs["fp32"]) == {"full", "pre", "post", "fused", "text"} | mids
    assert manifest.graphs["fp32"]["fused"].inputs[1].shape == (len(source.spec.locations),)
    assert manifest.parity["cosine"] > 0.99999


def test_every_graph_is_compared_alone(exported: tuple[ExportSource, Bundle]) -> None:
    source, bundle = exported
    (part,) = compare(source, bundle, Probe.choose(source, Pixels(images(source, 6, 1)), bundle.manifest.default_keep)).precisions
    alone = {(case.graph, case.batch, case.k) for case in part.cases}
    counts = {case.k for case in part.cases if case.graph == "post"}
    assert len(counts) == 3
    for place in range(1, len(source.spec.locations)):
        assert {(f"mid_{place}", batch, k) for batch in (1, 3) for k in counts} <= alone
    assert min(case.index_agreement for case in part.cases) == 1.0


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_engines_give_what_torch_gives(exported: tuple[ExportSource, Bundle], engine: str) -> None:
    source, bundle = exported
    reason = {status.name: status.reason for status in list_engines()}[engine]
    if reason:
        pytest.skip(reason)
    assert verify(bundle, engine).cosine > 0.99999
    pixels = images(source, 4, 9)
    wanted = source.pruned(pixels, Keep.count(7)).numpy()
    for mode in ("fused", "split"):
        with Encoder.load(bundle, engine=engine, mode=mode) as encoder:
            np.testing.assert_allclose(encoder.encode_pixels(pixels.numpy(), 7), wanted, atol=3e-6)
            counts = (source.spec.patches, *(5 for _ in source.spec.locations[1:]))
            own = source.pruned.finish(*source.pruned.run_pre(pixels), counts).numpy()
            np.testing.assert_allclose(encoder.encode_pixels(pixels.numpy(), counts), own, atol=3e-6)


def test_full_is_the_host_without_learnable_tokens(exported: tuple[ExportSource, Bundle]) -> None:
    source, bundle = exported
    pixels = images(source, 3, 4)
    wanted = functional.normalize(source.pruned.tower.host(pixels), dim=-1).numpy()
    with Encoder.load(bundle, mode="full") as encoder:
        np.testing.assert_allclose(encoder.encode_pixels(pixels.numpy()), wanted, atol=3e-6)
    np.testing.assert_allclose(image_graphs(source.pruned)["full"](pixels), wanted, atol=3e-6)
    graph = onnx.load(bundle.file("full.onnx")).graph
    assert not [weight.name for weight in graph.initializer if "scorer" in weight.name or "visual" in weight.name]
    # Where tokens were learned, pruning nothing is another model than the plain one.
    kept = source.pruned(pixels, Keep.ratio(1.0)).numpy()
    assert np.allclose(kept, wanted, atol=1e-5) == (source.spec.learnable_tokens == 0)


def test_axes_and_operators(exported: tuple[ExportSource, Bundle]) -> None:
    source, bundle = exported
    for role, spec in source.signatures().items():
        model = onnx.load(bundle.file(spec.file))
        onnx.checker.check_model(model, full_check=True)
        for values, declared in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
            found = [(value.name, tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)) for value in values]
            assert found == [(tensor.name, tensor.shape) for tensor in declared], role
        assert {node.domain for node in model.graph.node} == {""}


def test_agreement_follows_every_location(exported: tuple[ExportSource, Bundle]) -> None:
    source, bundle = exported
    rows = verify_with_model(bundle, source, Pixels(images(source, 9, 4)), (16, 5))
    assert all(row.cosine_min > 0.99999 and row.same_patches == 1.0 for row in rows)


def test_calibration_samples_are_what_the_graphs_are_given(exported: tuple[ExportSource, Bundle]) -> None:
    source, _ = exported
    spec, pixels = source.spec, images(source, 10, 2)
    samples = calibration_samples(source, Pixels(pixels), (9, 4))
    assert [call["pixels"].shape[0] for call in samples["full"]] == [8, 2]
    entering = [*(f"mid_{place}" for place in range(1, len(spec.locations))), "post"]
    for call, k in enumerate((9, 4)):
        lengths = [samples[role][call]["tokens"].shape[1] for role in entering]
        assert lengths == [spec.always_kept + count for count in spec.counts(Keep.count(k))]
    with torch.no_grad():
        found = image_graphs(source.pruned)["post"](torch.from_numpy(samples["post"][1]["tokens"]))
    np.testing.assert_allclose(found, source.pruned(pixels[8:], Keep.count(4)), atol=3e-6)


def test_a_middle_graph_that_disagrees_is_refused(exported: tuple[ExportSource, Bundle]) -> None:
    """Graphs are good, and PyTorch changes under them: only the blocks and tokens between the first two locations."""
    source, bundle = exported
    probe = Probe.choose(source, Pixels(images(source, 6, 1)), bundle.manifest.default_keep)
    block = source.pruned.tower.blocks[source.spec.locations[0] - 1]
    weight = next(value for value in block.parameters() if value.dim() == 2)
    saved = weight.clone()
    try:
        with torch.no_grad():
            weight.mul_(torch.linspace(0.0, 2.0, weight.shape[1]))
        with pytest.raises(ParityError, match=r"fused|split|mid_1"):
            compare(source, bundle, probe)
    finally:
        with torch.no_grad():
            weight.copy_(saved)


def test_post_and_mid_modules_equal_the_encoder() -> None:
    """Heads that read all tokens, appended ones in every block, and each place of the last location."""
    for kind, shape in (("average", (1, 4)), ("attentional", (2, 3)), ("plain, average", (1, 2))):
        source = progressive_source(kind, Progressive(shape, ("own",), tokens=2, layers=3))
        pruned = source.pruned
        tokens = torch.randn(3, source.spec.always_kept + 6, pruned.tower.width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            np.testing.assert_allclose(image_graphs(pruned)["post"](tokens), pruned.run_post(tokens), atol=3e-6)
            for found, wanted in zip(image_graphs(pruned)["mid_1"](tokens), pruned.run_mid(1, tokens), strict=True):
                torch.testing.assert_close(found, wanted, atol=3e-5, rtol=1e-4)


@pytest.mark.slow
def test_reduced_precisions_of_a_progressive_bundle_with_tokens(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="int8 needs NNCF: pip install '.[int8]'")
    source = progressive_source("cls", Progressive((2, 3, 4), ("first", "own"), tokens=2, layers=3))
    options = ExportOptions(Keep.ratio(0.6), ("fp16", "bf16", "int8"), Pixels(images(source, 6, 1)), calibration=Pixels(images(source, 24, 2)))
    write_bundle(source, tmp_path / "bundle", options)
    bundle = Bundle.open(tmp_path / "bundle")
    roles = {"full", "pre", "mid_1", "mid_2", "post", "fused"}
    assert all(set(bundle.manifest.graphs[precision]) == roles for precision in ("fp16", "bf16", "int8"))
    ran = []
    for engine in CPU_ENGINES:
        for precision in set(ENGINES[engine].precisions) - {"fp32"}:
            try:
                assert verify(bundle, engine, precision=precision).cosine > 0.9
            except EngineUnavailable:
                continue
            ran.append((engine, precision))
    assert {("ort", "int8"), ("torch", "bf16")} <= set(ran)


def test_class_embeddings_of_a_tuned_context(tmp_path: Path) -> None:
    from prtool.export.text import write_classes

    source = progressive_source("cls", Progressive((2, 3), ("first",)), classes=True)
    plain = source.classes()
    assert plain is not None
    tuned = functional.normalize(plain + 0.3 * torch.randn(plain.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    written = write_classes(replace(source, class_embeddings=tuned), tmp_path)
    assert written is not None and written.names == source.classnames
    np.testing.assert_array_equal(load_file(tmp_path / written.file)["embeddings"], tuned.numpy())
    with pytest.raises(ConfigError, match=r"\(2, 32\).*\(3, 32\)"):
        replace(source, class_embeddings=tuned[:2])
