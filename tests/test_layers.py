"""The structure itself: which folder may import which, what the wheel holds, and what a light import loads."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPO

FOLDERS = ("prtool", "trainer", "export", "runtime", "engines")
LAYERS = ("core", "engines", "runtime", "trainer", "export", "studies", "api", "cli")
"""From the lowest to the highest; a file imports from its own layer and from lower ones."""
HEAVY = {"torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript", "onnxruntime", "matplotlib", "pyarrow", "accelerate"}


def module_of(path: Path) -> str:
    """The dotted name under which a file is imported."""
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts if parts[0] == "prtool" else ("prtool", *parts)).removesuffix(".__init__")


def layer_of(module: str) -> str:
    """The layer of a module, by its name."""
    parts = module.split(".")
    if len(parts) == 1:
        return "api"
    if parts[1] in LAYERS:
        return parts[1]
    return "cli" if parts[1] == "__main__" else "core"


def sources() -> Iterator[Path]:
    """Every Python file of the package; links in prtool/ are the other folders again."""
    for folder in FOLDERS:
        for path in sorted((REPO / folder).rglob("*.py")):
            if not any(part.is_symlink() for part in path.parents) and "cpp" not in path.relative_to(REPO).parts:
                yield path


SOURCES = {module_of(path): path for path in sources()}


def names_in(node: ast.AST) -> set[str]:
    """The modules that one import statement may load."""
    if isinstance(node, ast.ImportFrom):
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return {name if name in SOURCES else node.module or "" for name in names}
    return {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()


def imported(path: Path) -> set[str]:
    return set().union(*(names_in(node) for node in ast.walk(ast.parse(path.read_text()))))


@pytest.mark.parametrize("module", SOURCES)
def test_a_file_imports_only_from_its_own_layer_and_lower_ones(module: str) -> None:
    own = LAYERS.index(layer_of(module))
    used = {name for name in imported(SOURCES[module]) if name in SOURCES}
    assert [name for name in sorted(used) if LAYERS.index(layer_of(name)) > own] == []


def imported_at_once(path: Path) -> set[str]:
    """What importing the file imports: everything but what stands inside a function, or is for type checkers only."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        found |= names_in(node)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("module", [name for name in SOURCES if layer_of(name) in ("core", "engines", "runtime")])
def test_what_an_application_embeds_needs_no_torch(module: str) -> None:
    """PyTorch is an engine like any other: only its folder imports it, and no other file imports that folder when it is loaded."""
    path, engine = SOURCES[module], "prtool.engines.pytorch"
    if module.startswith(engine):
        return
    found = imported_at_once(path) if layer_of(module) == "engines" else imported(path)
    assert not {name.split(".")[0] for name in found} & {"torch", "torchvision", "open_clip", "timm"}
    assert not any(name.startswith(engine) for name in imported_at_once(path))


def loaded_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return {name.split(".")[0] for name in output.split()}


def test_importing_prtool_is_light() -> None:
    assert not loaded_by("import prtool") & (HEAVY | {"numpy", "PIL", "rich", "click"})


def test_help_loads_nothing_heavy() -> None:
    assert not loaded_by("from prtool.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass") & (HEAVY | {"numpy", "PIL"})


def test_the_encoder_needs_no_torch() -> None:
    assert not loaded_by("import prtool.runtime.encoder") & {"torch", "open_clip", "timm", "onnx"}


def test_every_package_is_in_the_wheel() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    packages = {module for module, path in SOURCES.items() if path.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages


def test_every_python_folder_is_a_package() -> None:
    for path in SOURCES.values():
        assert (path.parent / "__init__.py").is_file(), path
