"""Fingerprints of images: the same for copies, others for other images, of files and of members of shards."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from prtool.errors import CheckpointError, DataError
from prtool.trainer.data.images import ImageSet
from prtool.trainer.data.seen import Seen, fingerprints


def write(root: Path, contents: dict[str, bytes]) -> ImageSet:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return ImageSet(root, tuple(contents), (0,) * len(contents), ("a", "b"))


def noise(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 131_072, 200_000])
def test_a_fingerprint_is_of_size_head_and_tail(tmp_path: Path, size: int) -> None:
    content = noise(size)
    ends = content if size <= 131_072 else content[:65_536] + content[-65_536:]
    expected = int.from_bytes(hashlib.sha256(f"{size} ".encode() + ends).digest()[:8], "big")
    images = write(tmp_path, {"a.png": content, "other/b.png": content})
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("first.png", "c.png"):
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(content))
    members = ImageSet(tmp_path, ("x.tar/c.png",), (0,), ("a", "b"))
    assert fingerprints(images).tolist() == [expected] * 2 and fingerprints(members).tolist() == [expected]


def test_what_is_found_again(tmp_path: Path) -> None:
    train = write(tmp_path / "t", {f"{i}.png": noise(100 + i) for i in range(4)})
    val = write(tmp_path / "v", {"v.png": noise(200), "both.png": noise(100)})
    seen = Seen.from_bytes(Seen.of(train, val).to_bytes())
    changed = noise(103)[:-1] + b"x"
    images = write(tmp_path / "new", {"n.png": noise(7), "v2.png": noise(200), "t2.png": noise(102), "x.png": changed, "b.png": noise(100)})
    assert seen.find(images) == ([2, 4], [1])
    more = seen.joined(Seen.of(write(tmp_path / "m", {"m.png": noise(7)}), val))
    assert more.find(images) == ([0, 2, 4], [1]) and len(more.val) == 2
    assert Seen.from_bytes(b"").find(images) == ([], [])


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        fingerprints(ImageSet(tmp_path, ("gone.png",), (0,), ("a", "b")))
    with pytest.raises(CheckpointError):
        Seen.from_bytes(b"12345678")
