"""Which profiles a graph gets, and which one a call belongs to."""

import itertools

import numpy as np
import pytest
from models import EMBEDDING, PIXELS, TOKENS, TinyModel

from prtool.engines.base import BuildOptions, Profile, ShapeRange
from prtool.engines.profiles import call_sizes, choose_profile, graph_profiles, profiles_text
from prtool.errors import ConfigError, ShapeError
from prtool.manifest import TensorSpec

K = TensorSpec("k", "int64", (1,))
IDS = TensorSpec("tokens", "int64", ("batch", 7))
BUILD = BuildOptions()


def profile(batch: tuple[int, int, int] = (1, 8, 32), k: tuple[int, int, int] = (2, 10, 16)) -> Profile:
    return {"batch": ShapeRange(*batch), "tokens": ShapeRange(*(n + 1 for n in k)), "k": ShapeRange(*k)}


def test_a_graph_takes_the_ranges_that_it_has() -> None:
    (fused,) = graph_profiles([PIXELS, K], [profile()], BUILD)
    assert set(fused) == {"batch", "k"}
    (post,) = graph_profiles([TOKENS], [profile()], BUILD)
    assert set(post) == {"batch", "tokens"}


def test_an_input_named_as_an_axis_is_no_shape() -> None:
    (text,) = graph_profiles([IDS], [profile()], BUILD)
    assert set(text) == {"batch"}
    assert call_sizes([IDS], {"tokens": np.zeros((3, 7), np.int64)}) == {"batch": (3,)}


def test_profiles_that_differ_elsewhere_are_built_once() -> None:
    narrow = [profile(k=(5, 5, 5)), profile(k=(9, 9, 9))]
    assert len(graph_profiles([PIXELS], narrow, BUILD)) == 1
    assert len(graph_profiles([PIXELS, K], narrow, BUILD)) == 2


def test_without_profiles_only_the_batch_may_vary() -> None:
    assert graph_profiles([PIXELS], (), BUILD) == ({"batch": BUILD.batch},)
    with pytest.raises(ConfigError, match=r"tokens.*\(batch, tokens\)"):
        graph_profiles([TOKENS], (), BUILD)
    assert graph_profiles([EMBEDDING], (), BUILD) == ({"batch": BUILD.batch},)


def test_profiles_in_a_message() -> None:
    assert profiles_text(graph_profiles([PIXELS, K], [profile()], BUILD)) == "batch 1:8:32, k 2:10:16"
    assert profiles_text(({"batch": ShapeRange(1, 1, 1)}, {"batch": ShapeRange(2, 3, 4)})) == "batch 1:1:1 | batch 2:3:4"


def test_sizes_of_a_call() -> None:
    pixels = TinyModel().pixels(3)
    assert call_sizes([PIXELS, K], {"pixels": pixels, "k": np.array([9])}) == {"batch": (3,), "k": (9,)}
    assert call_sizes([TOKENS], {"tokens": np.zeros((2, 11, 12))}) == {"batch": (2,), "tokens": (11,)}


def test_the_chosen_profile_is_the_narrowest_that_holds_the_call() -> None:
    profiles = [profile(), profile(k=(9, 9, 9)), profile(batch=(1, 1, 1)), profile(batch=(1, 1, 1), k=(9, 9, 9)), profile(batch=(4, 32, 32))]
    for batch, k in itertools.product((1, 2, 8, 32), (2, 9, 16)):
        chosen = profiles[choose_profile(profiles, {"batch": (batch,), "k": (k,)}, "fused.onnx", "trt")]
        holding = [p for p in profiles if p["batch"].min <= batch <= p["batch"].max and p["k"].min <= k <= p["k"].max]
        spans = [(p["batch"].max - p["batch"].min + 1) * (p["k"].max - p["k"].min + 1) for p in holding]
        assert chosen in holding
        assert spans[holding.index(chosen)] == min(spans)


def test_of_equally_narrow_profiles_the_nearer_usual_size_wins() -> None:
    profiles = [profile(batch=(1, 1, 32)), profile(batch=(1, 30, 32))]
    assert [choose_profile(profiles, {"batch": (n,)}, "pre.onnx", "trt") for n in (1, 2, 20, 32)] == [0, 0, 1, 1]


def test_every_value_of_a_shape_input_must_fit() -> None:
    profiles = [profile(k=(2, 4, 8)), profile(k=(2, 8, 16))]
    assert choose_profile(profiles, {"k": (8, 4)}, "fused.onnx", "trt") == 0
    assert choose_profile(profiles, {"k": (12, 4)}, "fused.onnx", "trt") == 1


@pytest.mark.parametrize(
    ("profiles", "sizes", "message"),
    [
        (
            [profile()],
            {"batch": (64,)},
            r"batch = 64.*g\.onnx.*1 to 32.*prtool build --engine trt --batch 1:8:64",
        ),
        ([profile(batch=(4, 8, 8))], {"batch": (2,)}, "batch = 2.* 4 to 8.*--batch 2:8:8"),
        ([profile()], {"k": (17,)}, r"k = 17.*g\.onnx.*2 to 16"),
        ([profile()], {"k": (16, 1)}, r"k = 1\b"),
        ([profile(k=(5, 5, 5)), profile(k=(9, 9, 9))], {"k": (7,)}, r"k = 7.*g\.onnx.* 5, 9.*--keep 5,7,9'"),
        ([profile(k=(5, 5, 5))], {"tokens": (9,)}, "tokens = 9.* 6.*--keep"),
        ([profile(), profile(batch=(64, 64, 64), k=(5, 5, 5))], {"batch": (64,), "k": (6,)}, "batch = 64, k = 6"),
    ],
)
def test_a_call_outside_names_value_range_and_command(profiles: list[Profile], sizes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        choose_profile(profiles, sizes, "g.onnx", "trt")
