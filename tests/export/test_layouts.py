"""Bundles in the layouts of other software: what that software computes from the folder is what Encoder gives."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from export_sources import CONTEXT, make_source, merging_source, smaller_source
from local_model import write_model
from PIL import Image
from tokenizers import Tokenizer

import prtool
from prtool.bundle import Bundle
from prtool.cli.main import app
from prtool.errors import BundleError, CheckpointError, ConfigError, KeepError, ParityError
from prtool.export.layouts import graphs, write
from prtool.export.layouts.plan import LAYOUTS, Contents, LayoutOptions
from prtool.export.layouts.tokenizer import TokenizerFile
from prtool.export.layouts.write import write_layout
from prtool.export.source import ExportSource
from prtool.export.write import ExportOptions, write_bundle
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.preprocess import prepare_batch
from prtool.spec import NONE, Keep, Preprocess
from prtool.trainer.config import TrainConfig
from prtool.trainer.models.dual_encoder import NoText
from prtool.trainer.train import train

PROMPTS = ["Hello, it's 3 o'clock!", "naïve &amp; “curly” ﬁne", "", "a photo of a cat. " * 2]
SIZES = ((100, 75), (75, 101), (64, 64), (333, 90), (48, 48))
NAMES = {
    "hf": ("onnx/vision_model.onnx", "pixel_values", "image_embeds", "onnx/text_model.onnx", "input_ids", "text_embeds"),
    "immich": ("visual/model.onnx", "image", "embedding", "textual/model.onnx", "text", "embedding"),
    "triton": ("image_encoder/1/model.onnx", "pixels", "embedding", "text_encoder/1/model.onnx", "tokens", "embedding"),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def rounded_down(source: ExportSource) -> ExportSource:
    """The same source with the crop of transformers and immich."""
    return replace(source, model=replace(source.model, preprocess=replace(source.model.preprocess, crop_rounding="floor")))


SOURCES: dict[str, Callable[[], ExportSource]] = {
    "rank": lambda: rounded_down(make_source("cls")),
    "merge": lambda: merging_source("cls", (1, 2)),
    "none": lambda: smaller_source("siglip"),
}


@pytest.fixture(scope="module", params=SOURCES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that ranks patches, one that merges them, and one of smaller images alone."""
    out = tmp_path_factory.mktemp(request.param) / "bundle"
    write_bundle(SOURCES[request.param](), out, ExportOptions(Keep.ratio(1.0)))
    return Bundle.open(out)


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that ranks patches, in two precisions."""
    out = tmp_path_factory.mktemp("ranking") / "bundle"
    write_bundle(SOURCES["rank"](), out, ExportOptions(Keep.ratio(0.6), ("fp16",)))
    return Bundle.open(out)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(5)
    files = [folder / f"{width}x{height}.png" for width, height in SIZES]
    for file, (width, height) in zip(files, SIZES, strict=True):
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
    return files


def keep_of(bundle: Bundle) -> Keep:
    return Keep.ratio(1.0 if bundle.manifest.prune.method == NONE else 0.7)


def written(bundle: Bundle, out: Path, layout: str, **options: Any) -> Path:
    return write_layout(bundle, out, LayoutOptions(layout, keep_of(bundle), **options)).folder


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_graphs_give_the_encoders_embeddings(bundle: Bundle, images: list[Path], tmp_path: Path, layout: str) -> None:
    folder = written(bundle, tmp_path / layout, layout)
    image, reads, gives, text, text_reads, text_gives = NAMES[layout]
    assert not list(folder.rglob("*_data"))
    size, width = bundle.manifest.preprocess.size, bundle.manifest.model.embed_dim
    vision, words = session(folder / image), session(folder / text)
    assert [(item.name, item.type, item.shape) for item in vision.get_inputs()] == [(reads, "tensor(float)", ["batch", 3, *size])]
    assert [(item.name, item.type, item.shape) for item in vision.get_outputs()] == [(gives, "tensor(float)", ["batch", width])]
    dtype, length = ("int32" if layout == "immich" else "int64"), ("sequence" if layout == "hf" else CONTEXT)
    assert [(item.name, item.type, item.shape) for item in words.get_inputs()] == [(text_reads, f"tensor({dtype})", ["batch", length])]
    assert [(item.name, item.type, item.shape) for item in words.get_outputs()] == [(text_gives, "tensor(float)", ["batch", width])]
    pixels = prepare_batch(images, bundle.manifest.preprocess)
    tokens = make_source("cls").model.tokenizer(PROMPTS).numpy()
    with Encoder.load(bundle) as encoder:
        for count in (1, len(images)):
            (found,) = vision.run(None, {reads: pixels[:count]})
            np.testing.assert_allclose(found, encoder.encode_pixels(pixels[:count], keep_of(bundle)), atol=1e-5)
        (found,) = words.run(None, {text_reads: tokens.astype(dtype)})
        np.testing.assert_allclose(found, encoder.encode_text(tokens), atol=1e-5)


def test_transformers_reads_layout_hf(bundle: Bundle, images: list[Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the reader: pip install '.[hf]'")
    folder = written(bundle, tmp_path / "hf", "hf")
    # transformers 5 has its PIL backend under a name of its own.
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    files = images if bundle.manifest.preprocess.crop_rounding == "floor" else [file for file in images if file.stem in ("64x64", "48x48")]
    pixels = kind.from_pretrained(folder)([Image.open(file) for file in files], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels, prepare_batch(files, bundle.manifest.preprocess), atol=2e-6)
    (found,) = session(folder / "onnx/vision_model.onnx").run(None, {"pixel_values": np.asarray(pixels, np.float32)})
    tokenizer, graph = transformers.AutoTokenizer.from_pretrained(folder), session(folder / "onnx/text_model.onnx")
    with Encoder.load(bundle) as encoder:
        np.testing.assert_allclose(found, encoder.encode_images(files, keep_of(bundle)), atol=1e-5)
        own = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
        own.no_padding()
        for prompts in (PROMPTS, PROMPTS[:1]):
            ids = tokenizer(prompts, padding=True, truncation=True, return_tensors="np")
            rows = [row[mask == 1].tolist() for row, mask in zip(ids["input_ids"], ids["attention_mask"], strict=True)]
            assert rows == [encoded.ids for encoded in own.encode_batch(prompts)]
            (texts,) = graph.run(None, {"input_ids": ids["input_ids"]})
            np.testing.assert_allclose(texts, encoder.encode_text(prompts), atol=1e-5)
    with pytest.raises(Exception, match=r"(?i)broadcast|dimension|shape"):
        graph.run(None, {"input_ids": np.ones((1, CONTEXT + 1), np.int64)})


class Immich:
    """Reads a folder as immich-machine-learning does with models of open_clip: names, resize, crop, normalisation and padding."""

    def __init__(self, folder: Path) -> None:
        self.preprocess, self.config = (json.loads((folder / name).read_text()) for name in ("visual/preprocess_cfg.json", "config.json"))
        self.visual, self.textual = session(folder / "visual/model.onnx"), session(folder / "textual/model.onnx")
        self.tokenizer = Tokenizer.from_file(str(folder / "textual/tokenizer.json"))
        pad, length = json.loads((folder / "textual/tokenizer_config.json").read_text())["pad_token"], self.config["text_cfg"]["context_length"]
        self.tokenizer.enable_padding(length=length, pad_token=pad, pad_id=self.tokenizer.token_to_id(pad))
        self.tokenizer.enable_truncation(max_length=length)

    def image(self, file: Path) -> np.ndarray:
        side, found = self.preprocess["size"][0], Image.open(file).convert("RGB")
        width, height = found.size
        scaled = (side, int(height / width * side)) if width < height else (int(width / height * side), side)
        left, top = (int(length / 2 - side / 2) for length in scaled)
        resized = found.resize(scaled, Image.Resampling[self.preprocess["interpolation"].upper()]).crop((left, top, left + side, top + side))
        mean, std = (np.array(self.preprocess[name], np.float32) for name in ("mean", "std"))
        pixels = (np.asarray(resized, np.float32) / 255 - mean) / std
        return self.visual.run(None, {"image": pixels.transpose(2, 0, 1)[None]})[0][0]

    def text(self, prompt: str) -> np.ndarray:
        ids = self.tokenizer.encode(" ".join(prompt.split())).ids
        return self.textual.run(None, {"text": np.array([ids], np.int32)})[0][0]


def test_immich_reads_layout_immich(bundle: Bundle, images: list[Path], tmp_path: Path) -> None:
    reader = Immich(written(bundle, tmp_path / "immich", "immich"))
    files = images if bundle.manifest.preprocess.crop_rounding == "floor" else [file for file in images if file.stem in ("64x64", "48x48")]
    with Encoder.load(bundle) as encoder:
        np.testing.assert_allclose([reader.image(file) for file in files], encoder.encode_images(files, keep_of(bundle)), atol=1e-5)
        np.testing.assert_allclose([reader.text(prompt) for prompt in PROMPTS], encoder.encode_text(PROMPTS), atol=1e-5)


def model_config() -> Any:
    """Triton's protobuf message ModelConfig; only its module is loaded, since the package imports grpc."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or found.origin is None:
        pytest.skip("tritonclient, which has Triton's protobuf schema, is not installed")
    pytest.importorskip("google.protobuf", reason="protobuf parses Triton's configuration")
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(found.origin).parent / "grpc" / "model_config_pb2.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("pixels", ["float32", "uint8"])
def test_triton_parses_the_configuration_of_layout_triton(ranking: Bundle, tmp_path: Path, pixels: str) -> None:
    schema = model_config()
    from google.protobuf import text_format

    folder = written(ranking, tmp_path / "models", "triton", pixels=pixels)
    types = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8", "tensor(int64)": "TYPE_INT64"}
    for name in ("image_encoder", "text_encoder"):
        parsed = text_format.Parse((folder / name / "config.pbtxt").read_text(), schema.ModelConfig())
        graph = session(folder / name / "1" / "model.onnx")
        assert (parsed.backend, parsed.max_batch_size > 1, parsed.HasField("dynamic_batching")) == ("onnxruntime", True, True)
        for declared, given in ((parsed.input, graph.get_inputs()), (parsed.output, graph.get_outputs())):
            found = [(item.name, schema.DataType.Name(item.data_type), ["batch", *item.dims]) for item in declared]
            assert found == [(item.name, types[item.type], item.shape) for item in given]


def test_pixels_of_uint8_are_normalised_inside(bundle: Bundle, images: list[Path], tmp_path: Path) -> None:
    folder = written(bundle, tmp_path / "models", "triton", pixels="uint8")
    size = bundle.manifest.preprocess.size
    pictures = np.stack([np.asarray(Image.open(file).resize(size[::-1])) for file in images])
    graph = session(folder / "image_encoder/1/model.onnx")
    assert [(item.name, item.type, item.shape) for item in graph.get_inputs()] == [("pixels", "tensor(uint8)", ["batch", *size, 3])]
    with Encoder.load(bundle) as encoder:
        wanted = encoder.encode_images(list(pictures), keep_of(bundle))
    np.testing.assert_allclose(graph.run(None, {"pixels": pictures})[0], wanted, atol=1e-5)


def test_another_precision_has_its_name_and_its_graph(ranking: Bundle, images: list[Path], tmp_path: Path) -> None:
    report = write_layout(ranking, tmp_path / "hf", LayoutOptions("hf", Keep.count(7), "fp16"))
    assert (report.keep, report.precision, {case.batch for case in report.cases}) == (7, "fp16", {1, 2, 3})
    assert sorted(path.name for path in (tmp_path / "hf" / "onnx").iterdir()) == ["text_model.onnx", "vision_model_fp16.onnx"]
    full = written(ranking, tmp_path / "fp32", "hf") / "onnx" / "vision_model.onnx"
    half = tmp_path / "hf" / "onnx" / "vision_model_fp16.onnx"
    assert half.stat().st_size < 0.6 * full.stat().st_size
    (found,) = session(half).run(None, {"pixel_values": prepare_batch(images, ranking.manifest.preprocess)})
    with Encoder.load(ranking) as encoder:
        assert (found * encoder.encode_images(images, 7)).sum(axis=1).min() > 0.999


def test_a_default_keep_is_the_bundles(ranking: Bundle, tmp_path: Path) -> None:
    assert write_layout(ranking, tmp_path / "immich", LayoutOptions("immich")).keep == ranking.manifest.default_keep == 10
    assert json.loads((tmp_path / "immich" / "prtool-layout.json").read_text())["keep"] == 10


def test_weights_that_protobuf_cannot_hold_lie_next_to_the_graph(ranking: Bundle, images: list[Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "MAX_INSIDE_BYTES", 10_000)
    written(ranking, tmp_path / "hf", "hf").rename(tmp_path / "moved")
    graph = tmp_path / "moved" / "onnx" / "vision_model.onnx"
    assert (tmp_path / "moved" / "onnx" / "vision_model.onnx_data").stat().st_size > 10 * graph.stat().st_size
    (found,) = session(graph).run(None, {"pixel_values": prepare_batch(images, ranking.manifest.preprocess)})
    with Encoder.load(ranking) as encoder:
        np.testing.assert_allclose(found, encoder.encode_images(images, keep_of(ranking)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_int8(tmp_path: Path, layout: str) -> None:
    pytest.importorskip("nncf", reason="int8 needs NNCF")
    from prtool.export.source import Pixels

    pixels = Pixels(torch.randn(20, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    write_bundle(SOURCES["rank"](), tmp_path / "bundle", ExportOptions(Keep.ratio(0.6), ("int8",), calibration=pixels))
    for kind in ("float32", "uint8") if layout == "triton" else ("float32",):
        report = write_layout(Bundle.open(tmp_path / "bundle"), tmp_path / kind, LayoutOptions(layout, None, "int8", kind))
        assert report.precision == "int8" and max(case.max_error for case in report.cases) <= 1e-3
    assert (tmp_path / "float32" / "onnx" / "vision_model_quantized.onnx").is_file() == (layout == "hf")


def without_text() -> ExportSource:
    source = make_source("cls")
    return replace(source, model=replace(source.model, text=NoText("test"), context_length=0))


def test_an_encoder_without_a_text_side(images: list[Path], tmp_path: Path) -> None:
    write_bundle(without_text(), tmp_path / "bundle", ExportOptions(Keep.ratio(0.7)))
    opened = Bundle.open(tmp_path / "bundle")
    for layout in LAYOUTS:
        folder = written(opened, tmp_path / layout, layout)
        assert not [path for path in folder.rglob("*") if "text" in path.name or "token" in path.name]
        assert "text" not in (folder / "config.json").read_text() if layout != "triton" else True
        image, reads, *_ = NAMES[layout]
        (found,) = session(folder / image).run(None, {reads: prepare_batch(images, opened.manifest.preprocess)})
        with Encoder.load(opened) as encoder:
            np.testing.assert_allclose(found, encoder.encode_images(images, 0.7), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "tensorflow"}, "tensorflow.*hf, immich, triton"),
        ({"layout": "hf", "pixels": "uint8"}, "uint8.*triton"),
        ({"layout": "immich", "pixels": "uint8"}, "uint8.*triton"),
        ({"layout": "triton", "pixels": "float16"}, "float16.*float32, uint8"),
        ({"layout": "hf", "precision": "bf16"}, "bf16.*fp32, fp16, int8"),
    ],
)
def test_options_that_cannot_be_used_are_named(tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prtool.write_layout(tmp_path, tmp_path / "out", **options)


def test_what_the_bundle_lacks_is_named(ranking: Bundle, tmp_path: Path) -> None:
    for kept in (0, 17):
        with pytest.raises((KeepError, ConfigError), match=str(kept)):
            prtool.write_layout(ranking.path, tmp_path / "out", layout="hf", keep=kept)
    with pytest.raises(ConfigError, match=r"int8.*fp32, fp16"):
        prtool.write_layout(ranking.path, tmp_path / "out", layout="hf", precision="int8")
    with pytest.raises(ConfigError, match="data"):
        prtool.write_layout(ranking.path, tmp_path / "out", layout="hf", data="photos")
    with pytest.raises(CheckpointError):
        prtool.write_layout(tmp_path / "nothing", tmp_path / "out", layout="hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["hf", "immich"])
def test_preprocessing_without_words_in_the_layout_is_named(ranking: Bundle, layout: str) -> None:
    tokenizer, options = TokenizerFile.of(ranking), LayoutOptions(layout)
    for change, said in (
        (Preprocess((64, 64), (0.5,) * 3, (0.5,) * 3, resize_mode="longest"), "longest"),
        (Preprocess((64, 96), (0.5,) * 3, (0.5,) * 3), "64 x 96"),
    ):
        with pytest.raises(ConfigError, match=f"{layout}.*{said}.*triton"):
            write._PLANS[layout](Contents(replace(ranking.manifest, preprocess=change), tokenizer, options))
    with pytest.raises(ConfigError, match=f"{layout}.*tokenizer.*triton"):
        write._PLANS[layout](Contents(ranking.manifest, None, options))


RESIZES: dict[str, dict[str, Any]] = {
    **{f"squash, {name}": {"interpolation": name, "resize_mode": "squash"} for name in ("bicubic", "bilinear", "nearest")},
    "more than the crop": {"resize_ratio": 80 / 64, "crop_rounding": "floor"},
}


@pytest.mark.parametrize("resize", RESIZES)
def test_other_resizes_in_layout_hf(ranking: Bundle, images: list[Path], tmp_path: Path, resize: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the reader: pip install '.[hf]'")
    spec = Preprocess((64, 64), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), **RESIZES[resize])
    plan = write._PLANS["hf"](Contents(replace(ranking.manifest, preprocess=spec), TokenizerFile.of(ranking), LayoutOptions("hf")))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(plan.files["preprocessor_config.json"]))
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor).from_pretrained(tmp_path)
    found = processor([Image.open(file) for file in images], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found, prepare_batch(images, spec), atol=2e-6)
    assert plan.notes == ()


def test_immich_resizes_to_its_crop_alone(ranking: Bundle) -> None:
    wider = replace(ranking.manifest, preprocess=replace(ranking.manifest.preprocess, resize_ratio=1.25))
    with pytest.raises(ConfigError, match=r"resize_ratio = 1\.25"):
        write._PLANS["immich"](Contents(wider, TokenizerFile.of(ranking), LayoutOptions("immich")))


def test_a_crop_that_is_rounded_otherwise_is_noted(ranking: Bundle) -> None:
    to_nearest = replace(ranking.manifest, preprocess=replace(ranking.manifest.preprocess, crop_rounding="nearest"))
    for layout, notes in (("hf", 1), ("immich", 1), ("triton", 0)):
        assert len(write._PLANS[layout](Contents(to_nearest, TokenizerFile.of(ranking), LayoutOptions(layout))).notes) == notes


def test_only_an_earlier_layout_is_replaced(ranking: Bundle, tmp_path: Path) -> None:
    first = written(ranking, tmp_path / "out", "hf")
    written(ranking, first, "triton")
    assert sorted(path.name for path in first.iterdir()) == ["image_encoder", "prtool-layout.json", "text_encoder"]
    (first / "thesis.txt").write_text("three years of work")
    for place in (first, ranking.path, ranking.path.parent):
        with pytest.raises(ConfigError, match=str(place)):
            written(ranking, place, "hf")
    assert (first / "thesis.txt").read_text() == "three years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_graph_that_disagrees_is_not_written(ranking: Bundle, tmp_path: Path, monkeypatch) -> None:
    original = write.image_graph
    monkeypatch.setattr(write, "image_graph", lambda model, spec, _, preprocess: original(model, spec, (3,), preprocess))
    with pytest.raises(ParityError, match=r"vision_model\.onnx.*1e-05"):
        written(ranking, tmp_path / "out", "hf")
    assert not list(tmp_path.iterdir())


def test_a_damaged_bundle_is_rejected(ranking: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(ranking.path, copy)
    with (copy / "weights.bin").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\xff\xff\xff\xff")
    with pytest.raises(BundleError, match=r"weights\.bin"):
        prtool.write_layout(copy, tmp_path / "out", layout="hf")


def test_a_bundle_needs_no_torch(ranking: Bundle, tmp_path: Path) -> None:
    program = (
        f"import sys, prtool; prtool.write_layout({str(ranking.path)!r}, {str(tmp_path / 'out')!r}, layout='hf', keep=5); "
        "assert not {'torch', 'open_clip', 'timm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "out" / "onnx" / "vision_model.onnx").is_file()


def command(*words: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, words)], catch_exceptions=False)


def test_the_command_takes_a_bundle(ranking: Bundle, tmp_path: Path) -> None:
    result = command(ranking.path, "--layout", "triton", "--keep", "0.4", "--pixels", "uint8", "-o", tmp_path / "out", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["layout"], found["pixels"], found["keep"]) == (0, "triton", "uint8", 6)
    assert {case["file"] for case in found["cases"]} == {NAMES["triton"][0], NAMES["triton"][3]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layout", "hf"], "-o"),
        (["--layout", "hf", "-o", "out", "--precision", "fp32,fp16"], "fp32, fp16"),
        (["--pixels", "uint8"], "--layout"),
    ],
)
def test_wrong_usage_of_the_command(ranking: Bundle, words: list[str], said: str) -> None:
    result = command(ranking.path, *words)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert said in result.stderr


def test_a_run_is_exported_first(tmp_path: Path) -> None:
    """Next to the output, with the comparison with PyTorch; of that bundle nothing is left."""
    settings = {"model": write_model(tmp_path / "model"), "prune.locations": [2], "phases": ["none"], "device": "cpu"}
    train(TrainConfig.load(None, settings), tmp_path / "run")
    report = prtool.write_layout(tmp_path / "run", tmp_path / "out", layout="immich", keep=0.4)
    assert (report.keep, report.table()[1][0][0]) == (6, "visual/model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "run"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.txt").write_text("three years of work")
    with pytest.raises(ConfigError, match="thesis"):
        prtool.write_layout(tmp_path / "run", tmp_path / "thesis", layout="immich")
