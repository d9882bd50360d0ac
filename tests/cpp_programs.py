"""The programs of the C++ library, for tests that run them."""

import functools
import os
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import pytest
from PIL import Image
from support import REPO

from prtool.errors import ImageError
from prtool.runtime.images.decode import opened
from prtool.runtime.images.preprocess import least_size, prepare
from prtool.spec import Preprocess

SOURCE = REPO / "runtime" / "cpp"
BUILD = Path(os.environ.get("PRTOOL_CPP_BUILD", SOURCE / "build" / "check-gcc")).resolve()

# Pillow 13 resizes tall images in another order than 12, with values that differ by 1, and the C++ library follows it.
SAME_PILLOW = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason=f"Pillow {PIL.__version__} resizes in another order; 13 is needed")


def built_file(pattern: str) -> Path:
    """A built program or library; skips the test, with the reason, where there is none."""
    path = next(BUILD.glob(pattern), None)
    if path is None:
        pytest.skip(f"not built: {BUILD / pattern} ('make cpp' builds it; PRTOOL_CPP_BUILD names another build folder)")
    return path


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program's end, with what it printed."""
    settings = {**os.environ, "TSAN_OPTIONS": f"suppressions={SOURCE / 'tests' / 'thread_sanitizer.txt'}", **environment}
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=240, check=False, env=settings)


def engines() -> list[str]:
    """What the library was built with."""
    return run(built_file("programs/prtool-run"), "--version").stdout.split("engines: ")[1].strip().split(",")


def noise_photographs(folder: Path) -> list[Path]:
    """Writes noise in several forms and sizes, and last a file that is no image."""
    random = np.random.default_rng(4)
    for number, (width, height) in enumerate([(8, 8), (40, 31), (7, 90), (1, 1), (64, 64)]):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
    (folder / "broken, or not.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    return sorted(folder.iterdir())


class ImageProbe:
    """One process that decodes and prepares images with the C++ library."""

    def __init__(self, spec: Preprocess, *, jpeg_scaling: bool = False) -> None:
        program = built_file("tests/image/prtool-image-probe")
        numbers = (*spec.size, *spec.mean, *spec.std)
        words = (
            spec.interpolation,
            spec.resize_mode,
            str(spec.fill),
            spec.crop_rounding,
            repr(spec.resize_ratio),
            "scaled" if jpeg_scaling else "exact",
        )
        arguments = [program, *map(repr, numbers), *words]
        self.spec, self.jpeg_scaling = spec, jpeg_scaling
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]] | str:
        """The decoded RGB and the prepared pixels, or the message of the error."""
        source, answers = self.process.stdin, self.process.stdout
        assert source is not None and answers is not None
        source.write(os.fsencode(path) + b"\n")
        source.flush()
        kind, *words = answers.readline().split()
        if kind == b"error":
            return b" ".join(words[1:]).decode()
        width, height = map(int, words)
        rgb = np.frombuffer(answers.read(3 * width * height), np.uint8).reshape(height, width, 3)
        size = (3, *self.spec.size)
        return rgb, np.frombuffer(answers.read(4 * int(np.prod(size))), np.float32).reshape(size)

    def differs(self, path: Path, rejections: bool = True) -> str | None:
        """What differs between C++ and Python; without `rejections`, one of the two may reject what the other reads."""
        found = self(path)
        try:
            with opened(path, functools.partial(least_size, spec=self.spec) if self.jpeg_scaling else None) as found_here:
                pixels = np.asarray(found_here.image)
        except ImageError as error:
            return None if isinstance(found, str) or not rejections else f"only Python rejects it: {error}"
        if isinstance(found, str):
            return f"only C++ rejects it: {found}" if rejections else None
        if not np.array_equal(found[0], pixels):
            return f"other pixels, {found[0].shape} in place of {pixels.shape}"
        prepared = prepare(path, self.spec, jpeg_scaling=self.jpeg_scaling)
        return None if np.array_equal(found[1], prepared) else "the same pixels, prepared otherwise"

    def close(self) -> None:
        """Ends the process, which must not have failed."""
        self.process.communicate()
        assert self.process.returncode == 0
