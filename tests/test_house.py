"""The structure itself: which folder may import which, what the wheel holds, and what a light import loads."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPO

import prtool

FOLDERS = ("prtool", "trainer", "export", "runtime", "engines")
HEAVY = {"torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript", "onnxruntime", "matplotlib", "pyarrow", "accelerate"}
# Who may import whom. `cli` and `demo` are the top of the house and may use everything.
MAY_IMPORT = {
    "prtool": {"prtool"},
    "engines": {"prtool", "engines"},
    "runtime": {"prtool", "engines", "runtime"},
    "trainer": {"prtool", "trainer", "runtime"},
    "export": {"prtool", "trainer", "engines", "runtime", "export"},
}
TOP = {
    "prtool/__init__.py",
    "prtool/__main__.py",
    "prtool/build_commands.py",
    "prtool/bundle_commands.py",
    "prtool/choice.py",
    "prtool/cli.py",
    "prtool/data_commands.py",
    "prtool/demo.py",
    "prtool/doctor.py",
    "prtool/parameters.py",
    "prtool/reproduce_command.py",
    "prtool/study_commands.py",
    "prtool/tune.py",
    "prtool/tune_config.py",
    "prtool/tune_quality.py",
    "prtool/tune_steps.py",
}


def sources(folder: str) -> Iterator[Path]:
    for path in sorted((REPO / folder).rglob("*.py")):
        if not any(part.is_symlink() for part in path.relative_to(REPO).parents if part.name):
            inside = path.relative_to(REPO)
            if folder != "prtool" or len(inside.parts) == 2:
                yield path


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return found | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def folder_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "prtool":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "prtool"


@pytest.mark.parametrize("folder", FOLDERS)
def test_arrows_point_one_way(folder: str) -> None:
    for path in sources(folder):
        if path.relative_to(REPO).as_posix() in TOP:
            continue
        reached = {folder_of(module) for module in imported(path)} - {None}
        assert reached <= MAY_IMPORT[folder], f"{path} imports {reached - MAY_IMPORT[folder]}"


def imported_at_once(path: Path) -> set[str]:
    """What importing the file imports: everything but what stands inside a function."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("folder", ["runtime", "engines"])
def test_runtime_and_engines_never_import_torch(folder: str) -> None:
    """But for the PyTorch engine's own files, engines/torch_*.py; in a function, an engine may use torch where it is installed."""
    for path in sources(folder):
        inside_functions = folder == "engines"
        if inside_functions and path.name.startswith("torch_"):
            continue
        heads = {module.split(".")[0] for module in (imported_at_once(path) if inside_functions else imported(path))}
        assert not heads & {"torch", "torchvision", "open_clip", "timm"}, path
        files = {module.removeprefix("prtool.engines.") for module in imported_at_once(path)}
        assert not any(name.startswith("torch_") for name in files), path


def loaded_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return {name.split(".")[0] for name in output.split()}


def test_importing_prtool_is_light() -> None:
    assert not loaded_by("import prtool") & (HEAVY | {"numpy", "PIL", "rich", "click"})


def test_help_loads_nothing_heavy() -> None:
    assert not loaded_by("from prtool.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass") & (HEAVY | {"numpy", "PIL"})


def test_the_encoder_needs_no_torch() -> None:
    assert not loaded_by("import prtool.runtime.encoder") & {"torch", "open_clip", "timm", "onnx"}


def test_every_package_is_in_the_wheel() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    # Links in prtool/ are the other folders, for type checkers only.
    own = [init.parent for init in (REPO / "prtool").glob("*/__init__.py") if not init.parent.is_symlink()]
    on_disk = {"prtool", *(f"prtool.{folder.name}" for folder in own)}
    for folder in FOLDERS[1:]:
        for init in (REPO / folder).rglob("__init__.py"):
            on_disk.add("prtool." + ".".join(init.relative_to(REPO).parent.parts))
    assert listed == on_disk


def test_every_python_folder_is_a_package() -> None:
    for folder in FOLDERS:
        for path in sources(folder):
            # The C++ library has scripts beside its sources, and is no package.
            assert (path.parent / "__init__.py").is_file() or "cpp" in path.parts, path


def test_the_public_names() -> None:
    """A change here is a change of the public interface: say so in the changelog."""
    assert sorted(prtool.__all__) == ["Bundle", "Encoder", "Keep", "Manifest", "PrtoolError", "__version__"]
    for name in prtool.__all__:
        assert getattr(prtool, name) is not None
