"""A signal ends a command as Ctrl-C does."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

WAITS = """
import signal, sys, time
# What starts the tests may ignore signals (nohup, a shell's background job), and its children then do so too.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
from pathlib import Path
from prtool.cli.main import app, main
from prtool.files import new_directory, new_file

@app.command("wait")
def wait():
    with new_directory(Path("bundle")) as folder, new_file(Path("file")):
        (folder / "half").write_text("half")
        print("in", flush=True)
        time.sleep(60)

main(["wait"])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    child = subprocess.Popen([sys.executable, "-c", WAITS], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "in\n"
    assert len(list(tmp_path.iterdir())) == 2
    child.send_signal(number)
    _, error = child.communicate(timeout=30)
    assert (child.returncode, error.count("\n"), error.split(";")[0]) == (128 + number, 1, "interrupted")
    assert list(tmp_path.iterdir()) == []
