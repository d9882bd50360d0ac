"""What prtool-run writes, what it never replaces, and how it ends."""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cpp_programs import built_file, engines, run
from models import SIDE, TinyModel, tiny_bundle
from PIL import Image

from prtool.runtime.encoder import Encoder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("run") / "bundle", TinyModel()).path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return path


def prtool_run(*words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run(built_file("programs/prtool-run"), *words, **environment)


NAMES = ["plain.png", "a\nb.png", 'quote".png', "comma,.png", "é.png", "😀.png", b"not utf-8 \xe9.png"]


def test_any_name_keeps_paths_and_rows_together(bundle: Path, photo: Path, tmp_path: Path) -> None:
    names = [os.fsencode(photo.parent) + b"/" + os.fsencode(name) for name in NAMES]
    for number, name in enumerate(names):
        Image.new("RGB", (SIDE, SIDE), (number * 30, 200, 7)).save(os.fsdecode(name), format="PNG")
    photo.unlink()
    found = subprocess.run(
        [built_file("programs/prtool-run"), "embed", bundle, photo.parent, "-o", tmp_path / "out.npy"], capture_output=True, check=False
    )
    assert found.returncode == 0, found.stderr
    lines = (tmp_path / "out.paths.jsonl").read_text("ascii").splitlines()
    paths = [os.fsencode(json.loads(line)) for line in lines]
    assert sorted(paths) == sorted(names)
    with Encoder.load(bundle) as encoder:
        rows = encoder.encode_images([os.fsdecode(path) for path in paths])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), rows, atol=1e-6)


def test_links_that_loop_and_thumbnails_are_left_out_with_one_line(bundle: Path, photo: Path) -> None:
    folder = photo.parent
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "again").symlink_to(".")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "@eaDir").mkdir()
    shutil.copy(photo, folder / "@eaDir" / "thumb.png")
    shutil.copy(photo, folder / ".hidden.png")
    found = prtool_run("embed", bundle, folder)
    assert found.returncode == 0, found.stderr
    assert [line.split(",")[0] for line in found.stdout.splitlines()] == [str(photo)]
    note = found.stderr.splitlines()[0]
    assert note.startswith("5 ")
    assert all(name in note for name in ("loop.png", "again", "pipe.jpg", "thumb.png", ".hidden.png"))


def _link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("thesis")
    path.symlink_to(path.parent / "elsewhere")


def _text(path: Path) -> None:
    path.write_text("thesis\n")


STANDING: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a text": ("out.npy", _text, "out."),
    "a table of others": ("out.csv", lambda path: path.write_text("name,city\nAda,London\n"), "out."),
    "a link": ("out.npy", _link, "out.npy"),
    "a folder": ("out.npy", Path.mkdir, "out.npy"),
    "a pipe": ("out.csv", os.mkfifo, "out.csv"),
}


@pytest.mark.parametrize("what", STANDING)
def test_what_is_no_earlier_output_is_never_replaced(bundle: Path, photo: Path, tmp_path: Path, what: str) -> None:
    name, make, words = STANDING[what]
    make(tmp_path / name)
    before = (tmp_path / name).lstat()
    found = prtool_run("embed", bundle, photo, "-o", tmp_path / name)
    assert (found.returncode, found.stderr.count("\n"), words in found.stderr) == (1, 1, True), found.stderr
    assert (tmp_path / name).lstat().st_mtime_ns == before.st_mtime_ns


def test_inputs_are_never_outputs(bundle: Path, photo: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.csv"
    shutil.copy(photo, image)
    found = prtool_run("embed", bundle, image, "-o", image)
    assert (found.returncode, "image.csv" in found.stderr) == (1, True), found.stderr
    assert image.read_bytes() == photo.read_bytes()
    found = prtool_run("embed", bundle, photo, "-o", bundle / "out.npy")
    assert (found.returncode, str(bundle) in found.stderr) == (1, True), found.stderr
    paths = tmp_path / "out.paths.jsonl"
    paths.write_text("thesis")
    found = prtool_run("embed", bundle, photo, "-o", tmp_path / "out.npy")
    assert (found.returncode, "out.paths.jsonl" in found.stderr, paths.read_text()) == (1, True, "thesis")


@pytest.mark.parametrize(("command", "name"), [("embed", "out.npy"), ("embed", "out.csv"), ("classify", "out.csv")])
def test_an_earlier_output_is_replaced(bundle: Path, photo: Path, tmp_path: Path, command: str, name: str) -> None:
    out = tmp_path / name
    stray = tmp_path / f".{name}.0123abcd.part"
    stray.write_text("of a killed run")
    for _ in range(2):
        found = prtool_run(command, bundle, photo, "-o", out)
        assert found.returncode == 0, found.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    other = prtool_run("classify" if command == "embed" else "embed", bundle, photo, "-o", tmp_path / "out.csv") if name == "out.csv" else None
    assert other is None or "out." in other.stderr


@pytest.mark.parametrize("words", [["embed"], ["classify"], ["--help"], ["--version"]])
@pytest.mark.parametrize("end", ["full", "closed"])
def test_a_full_or_closed_stdout_is_one_line(bundle: Path, photo: Path, words: list[str], end: str) -> None:
    command = [built_file("programs/prtool-run"), *words, *([bundle, photo] if words[0].isalpha() else [])]
    shell = " ".join(f"'{word}'" for word in command) + (" > /dev/full" if end == "full" else " >&-")
    found = run("sh", "-c", shell)
    lines = [line for line in found.stderr.splitlines() if "images/s" not in line]
    assert (found.returncode, len(lines)) == (1, 1), found.stderr
    assert lines[0].startswith("error: stdout ")


def test_a_reader_that_goes_away_is_one_line(bundle: Path, photo: Path) -> None:
    found = run("bash", "-c", f"'{built_file('programs/prtool-run')}' embed '{bundle}' '{photo}' | true; echo ${{PIPESTATUS[0]}}")
    assert found.stdout in ("0\n", "1\n")  # 0: written before the reader went away
    assert [line for line in found.stderr.splitlines() if "images/s" not in line and not line.startswith("error: stdout ")] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing(bundle: Path, photo: Path, tmp_path: Path, number: signal.Signals) -> None:
    pipe = tmp_path / "wait.png"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)  # an image that never comes
    # What starts the tests may ignore signals (nohup, a shell's background job), and its children then do so too.
    program = ["env", "--default-signal=INT,TERM,HUP", built_file("programs/prtool-run")]
    process = subprocess.Popen([*program, "embed", bundle, photo, pipe, "-o", tmp_path / "out.npy"], stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, printed) == (128 + number, "interrupted; nothing was written\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "wait.png"]


def test_a_full_disk_leaves_the_earlier_output(bundle: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    assert prtool_run("embed", bundle, photo, "-o", out).returncode == 0
    before = out.read_bytes()

    def no_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))

    words = [built_file("programs/prtool-run"), "embed", bundle, photo, "-o", out]
    found = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=no_space)
    assert (found.returncode, "File too large" in found.stderr) == (1, True), found.stderr
    assert (out.read_bytes(), [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]) == (before, [])


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_nothing_is_reported_to_anybody(bundle: Path, photo: Path, tmp_path: Path, engine: str) -> None:
    if engine not in engines():
        pytest.skip(f"the library was built without engine {engine}")
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and not name.startswith("XDG_")}
    words = [built_file("programs/prtool-run"), "embed", bundle, photo, "--engine", engine]
    found = subprocess.run(words, capture_output=True, text=True, check=False, env=kept | {"HOME": str(home)})
    assert found.returncode == 0, found.stderr
    assert list(home.rglob("*")) == []
