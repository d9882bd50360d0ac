"""Selection against a plain loop."""

import numpy as np
import pytest

from prtool.errors import KeepError, ShapeError
from prtool.runtime.select import gather, select


def slow_select(scores: np.ndarray, k: int) -> list[list[int]]:
    """Takes the best remaining one k times; the first of equals."""
    chosen = []
    for row in scores.tolist():
        left, order = list(range(len(row))), []
        for _ in range(k):
            best = left[0]
            for i in left:
                if row[i] > row[best]:
                    best = i
            left.remove(best)
            order.append(best)
        chosen.append(order)
    return chosen


@pytest.mark.parametrize("levels", [0, 2, 5])
@pytest.mark.parametrize("k", [1, 2, 17, 36])
def test_equals_a_plain_loop(levels: int, k: int) -> None:
    scores = np.random.default_rng(k + levels).standard_normal((5, 36)).astype(np.float32)
    if levels:
        scores = np.round(scores * levels / 3)  # many ties
    result = select(scores, k)
    assert result.dtype == np.int64
    assert result.tolist() == slow_select(scores, k)


def test_ties_take_the_lower_index_first() -> None:
    assert select(np.array([[1.0, 3.0, 3.0, 2.0, 3.0]], np.float32), 4).tolist() == [[1, 2, 4, 3]]


def test_zeros_of_both_signs_tie_and_infinities_are_ordered() -> None:
    scores = np.array([[0.0, -0.0, np.inf, -np.inf, 0.0]], np.float32)
    assert select(scores, 5).tolist() == [[2, 0, 1, 4, 3]]


def test_equals_onnx_topk() -> None:
    reference = pytest.importorskip("onnx.reference")
    helper = pytest.importorskip("onnx.helper")
    node = helper.make_node("TopK", ["scores", "k"], ["values", "indices"], axis=1, largest=1, sorted=1)
    ints, floats = 7, 1
    inputs = [helper.make_tensor_value_info("scores", floats, (2, 30)), helper.make_tensor_value_info("k", ints, (1,))]
    outputs = [helper.make_tensor_value_info("values", floats, None), helper.make_tensor_value_info("indices", ints, None)]
    graph = helper.make_model(helper.make_graph([node], "topk", inputs, outputs))
    scores = np.round(np.random.default_rng(3).standard_normal((2, 30)) * 2).astype(np.float32)
    expected = reference.ReferenceEvaluator(graph).run(["indices"], {"scores": scores, "k": np.array([11])})[0]
    np.testing.assert_array_equal(select(scores, 11), expected)


def test_nan_is_refused_and_placed() -> None:
    scores = np.zeros((3, 8), np.float32)
    scores[1, 6] = scores[2, 0] = np.nan
    with pytest.raises(ShapeError, match=r"2.*NaN.*1.*6"):
        select(scores, 2)


@pytest.mark.parametrize("k", [0, -1, 9])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(KeepError, match=f"k = {k}"):
        select(np.zeros((1, 8), np.float32), k)


@pytest.mark.parametrize("scores", [np.zeros(8, np.float32), np.zeros((1, 8), np.int64)])
def test_scores_of_another_kind_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"\(batch, patches\)"):
        select(scores, 1)


@pytest.mark.parametrize(("prefix", "appended"), [(0, 0), (1, 0), (0, 2), (5, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gather_equals_a_plain_loop(prefix: int, appended: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    patches, k = 9, 4
    tokens = rng.standard_normal((3, prefix + patches + appended, 6)).astype(dtype)
    indices = np.stack([rng.permutation(patches)[:k] for _ in range(3)])
    expected = [
        [*image[:prefix], *(image[prefix + i] for i in chosen), *image[len(image) - appended :]]
        for image, chosen in zip(tokens, indices, strict=True)
    ]
    result = gather(tokens, indices, prefix, appended)
    assert result.dtype == dtype
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, np.array(expected))


@pytest.mark.parametrize("index", [-1, 9])
def test_gather_refuses_what_is_no_patch(index: int) -> None:
    with pytest.raises(ShapeError, match="8"):
        gather(np.zeros((1, 11, 2), np.float32), np.array([[0, index]]), 1, 1)


def test_gather_refuses_arrays_that_do_not_fit() -> None:
    with pytest.raises(ShapeError):
        gather(np.zeros((2, 11, 2), np.float32), np.array([[0]]), 1, 1)
