"""int8 graphs: 8-bit products, float scores and head, and embeddings near to PyTorch's, by ONNX Runtime."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_sources import make_source

from prtool.bundle import Bundle
from prtool.errors import ConfigError, EngineUnavailable, ParityError
from prtool.export.precision import int8 as quantise
from prtool.export.precision.build import at_precision, calibration_samples, stages
from prtool.export.precision.regions import head, scorer
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation import agreement
from prtool.export.validation.agreement import KeepAgreement, VerifyRequest, check_agreement, verify_with_model
from prtool.export.validation.decisions import Decisions
from prtool.export.write import ExportOptions, write_bundle
from prtool.runtime.verify import Gate, verify
from prtool.spec import Keep

pytest.importorskip("nncf", reason="int8 needs NNCF: pip install '.[int8]'")


def images(number: int, seed: int) -> torch.Tensor:
    """Smooth pictures: noise has no structure that a scale could follow."""
    coarse = torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")


@pytest.fixture(scope="module")
def source() -> ExportSource:
    return make_source("cls", classes=True)


@pytest.fixture(scope="module")
def bundle(source: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("int8") / "bundle"
    options = ExportOptions(
        Keep.ratio(0.6), ("int8",), pixels=Pixels(images(5, 1)), calibration=Pixels(images(24, 2)), held_out=Pixels(images(32, 3))
    )
    # Without classes: the first of three random ones turns on hundredths of a cosine, which a CPU without VNNI, where ONNX
    # Runtime adds int8 products in 16 bits, takes from 2 images of 32. The cosines are gated all the same.
    write_bundle(replace(source, classnames=(), templates=()), out, options)
    return Bundle.open(out)


def test_the_samples_are_what_the_graphs_are_given(source: ExportSource) -> None:
    pixels = images(20, 4)
    samples = calibration_samples(source, Pixels(pixels), (16, 10))
    assert [item["pixels"].shape[0] for item in samples["pre"]] == [8, 8, 4]
    assert [item["tokens"].shape[1] for item in samples["post"]] == [17, 11, 17]
    np.testing.assert_array_equal(np.concatenate([item["pixels"] for item in samples["pre"]]), pixels.numpy())


def test_products_are_8_bit_but_for_scores_and_head(source: ExportSource) -> None:
    plain = stages(source)
    made = at_precision(source, plain, "int8", calibration_samples(source, Pixels(images(24, 2)), (16, 10)))
    unflat = stages(source, flat=False)
    in_float = {node.name for node in (*scorer(unflat["pre"].graph), *head(unflat["post"].graph))}
    for model in made.values():
        products = [node for node in model.graph if node.op_type in ("MatMul", "Conv")]
        rounded = [node for node in products if all(value is not None and _dequantised(value) for value in node.inputs[:2])]
        # Attention's probabilities stay float, and so the product that they enter.
        mixing = {str(node.name) for node in products if (maker := node.inputs[0].producer()) is not None and maker.op_type == "Softmax"}
        assert {str(node.name) for node in products} - {str(node.name) for node in rounded} <= in_float | mixing
        assert len(rounded) > 4
    assert all(not _dequantised(value) for node in head(made["post"].graph) for value in node.inputs if value is not None)


def _dequantised(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in ("Reshape", "Transpose", "Unsqueeze", "Squeeze"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == "DequantizeLinear"


def test_a_bundle_in_two_precisions(source: ExportSource, bundle: Bundle) -> None:
    assert list(bundle.manifest.graphs) == ["fp32", "int8"]
    assert set(bundle.manifest.graphs["int8"]) == {"full", "pre", "post", "fused"}
    assert {"int8/pre.onnx", "int8/fused.onnx"} <= set(bundle.manifest.files)
    assert bundle.manifest.parity["cosine"] > 0.99999 > bundle.manifest.parity["int8.cosine"] > 0.9
    assert bundle.manifest.parity["int8.mean_cosine"] > 0.99
    assert bundle.manifest.versions["nncf"]
    report = verify(bundle, precision="int8")
    assert report.precision == "int8" and 0.9 < report.cosine < 1.0
    rows = verify_with_model(bundle, source, Pixels(images(16, 9)), (16, 10), VerifyRequest(precision="int8"))
    assert all(0.99 < row.cosine_mean < 1.0 and row.same_patches > 0.8 for row in rows)


def test_weights_take_a_quarter(bundle: Bundle) -> None:
    sizes = {name: onnx.load(bundle.file(name)).ByteSize() for name in ("post.onnx", "int8/post.onnx")}
    assert sizes["int8/post.onnx"] < 0.6 * sizes["post.onnx"]


def test_a_gate_that_fails_names_the_worst_images(source: ExportSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    strict = Gate(0.5, 0.9999999, 1.0, 1.0, 1.0)
    monkeypatch.setattr(agreement, "gate_of", lambda _: strict)
    options = ExportOptions(Keep.ratio(0.6), ("int8",), pixels=Pixels(images(5, 1)), calibration=Pixels(images(16, 2)), held_out=Pixels(images(8, 3)))
    with pytest.raises(ParityError, match=r"int8.*image \d"):
        write_bundle(source, tmp_path / "bundle", options)
    assert not list(tmp_path.iterdir())


def test_the_message_names_files() -> None:
    row = KeepAgreement(10, 3, 0.2, 0.5, 1.0, 0.5, None, (2, 0))
    with pytest.raises(ParityError, match=r"0\.500000.*0\.999.*50\.0%.*99%.*c\.jpg, a\.jpg"):
        check_agreement([row], VerifyRequest("trt", "fp16"), Decisions("top1", "good classes"), ["a.jpg", "b.jpg", "c.jpg"])


def test_int8_without_images(source: ExportSource, tmp_path: Path) -> None:
    for calibration in (None, images(15, 0)):
        with pytest.raises(ConfigError, match=r"(0|15)\b.*16.*--data"):
            write_bundle(source, tmp_path / "bundle", ExportOptions(Keep.count(5), ("int8",), calibration=calibration))
    assert not list(tmp_path.iterdir())


def test_without_nncf_the_pip_line_is_named(source: ExportSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    with pytest.raises(EngineUnavailable, match=r"pip install '\.\[int8\]'"):
        quantise.to_int8(stages(source)["post"], [])


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match=r"precision = 'int4'.*fp32, fp16, bf16, int8"):
        ExportOptions(Keep.ratio(0.5), ("int4",))


def test_onnx_runtime_loads_without_warnings(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    onnxruntime.InferenceSession(bundle.file("int8/fused.onnx"), providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""
