"""Rotary positions behind the contract of families: the declared width, several locations and learnable tokens."""

import numpy as np
import pytest
import torch
from export_sources import Progressive, make_source, progressive_source
from towers import ROTARY

from prtool.export.write import ExportOptions, write_bundle
from prtool.runtime.encoder import Encoder
from prtool.spec import Keep

KEEP = Keep.ratio(0.5)


@pytest.mark.parametrize("kind", ROTARY)
def test_tokens_carry_their_place(kind):
    """The declared width is four more than the encoder's."""
    source = make_source(kind)
    pre = source.signatures()["pre"]
    assert [spec.shape[-1] for spec in pre.outputs if spec.name == "tokens"] == [source.pruned.tower.width + 4]


@pytest.mark.parametrize("kind", ["eva02", pytest.param("dinov3", marks=pytest.mark.slow)])
def test_progressive_with_learnable_tokens(tmp_path, kind):
    source = progressive_source(kind, Progressive((1, 2, 3), tokens=2, layers=2, first=1))
    write_bundle(source, tmp_path / "bundle", ExportOptions(KEEP, ("fp32",)))
    pixels = torch.randn(2, 3, *source.pruned.tower.image_size)
    with torch.no_grad():
        wanted = source.pruned(pixels, KEEP).numpy()
    for mode in ("fused", "split"):
        with Encoder.load(tmp_path / "bundle", mode=mode) as encoder:
            assert np.allclose(encoder.encode_pixels(pixels.numpy(), keep=KEEP), wanted, atol=1e-5)
