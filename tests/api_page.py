"""Makes docs/api.md from the docstrings of the public names: `python tests/api_page.py`."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prtool
from prtool import api, errors

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
FUNCTIONS = ("train", "evaluate", "tune", "export_bundle", "write_layout", "apply", "verify", "benchmark", "build", "list_engines")
CLASSES = {
    "Encoder": "load counts encode_images encode_pixels encode_device encode_tokens encode_text classify scores kept close",
    "PatchTokens": "",
    "Prediction": "",
    "Keep": "ratio count of parse resolve",
    "EngineOptions": "",
    "BuildOptions": "",
    "EngineInfo": "",
    "EngineStatus": "",
    "Bundle": "open",
    "Manifest": "",
    "TrainConfig": "load from_json to_json",
    "Progress": "start advance finish",
}
"""The classes, and which of their methods the page has."""
REPORTS = ("TrainReport", "EvalReport", "TuneReport", "ExportReport", "LayoutReport", "VerifyResult", "BenchReport", "BuildReport")
ALIASES = {"AnyPath": "str | Path", "AnyKeep": "Keep | float | int"}
WIDTH = 100


def filled(text: str, first: str = "", other: str = "") -> str:
    """A paragraph in lines of at most `WIDTH` characters."""
    text = " ".join(text.replace("``", "`").split())
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=other, break_long_words=False, break_on_hyphens=False)


def signature(function: Callable[..., Any], name: str) -> str:
    """The call as the source has it, without `self` and `cls`, in one line or one line a parameter."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    written = {item.arg: item.annotation for item in (*node.args.args, *node.args.kwonlyargs)}
    parts, keyword = [], False
    for item in inspect.signature(function).parameters.values():
        if item.name in ("self", "cls"):
            continue
        if item.kind is item.KEYWORD_ONLY and not keyword:
            parts, keyword = [*parts, "*"], True
        parts.append(f"{item.name}: {annotation(written[item.name])}" + ("" if item.default is item.empty else f" = {item.default!r}"))
    returned = annotation(node.returns)
    line = f"{name}({', '.join(parts)}) -> {returned}"
    return line if len(line) <= WIDTH else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f") -> {returned}"


def annotation(node: ast.expr | None) -> str:
    """A type as the source has it, with the aliases of `prtool.api` written out."""
    text = "" if node is None else str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)
    for alias, meaning in ALIASES.items():
        text = re.sub(rf"\b{alias}\b", meaning, text)
    return text


def markdown(docstring: str) -> Iterator[str]:
    """The paragraphs of a docstring in Google's style."""
    for block in re.split(r"\n\n+", inspect.cleandoc(docstring)):
        head, _, rest = block.partition("\n")
        if head.rstrip(":") not in ("Args", "Raises", "Attributes", "Returns", "Usage"):
            is_code = all(line.startswith(" ") for line in block.splitlines())
            yield f"```python\n{textwrap.dedent(block)}\n```" if is_code else "" if block == "::" else filled(block.removesuffix("::").strip())
        elif head == "Returns:":
            yield filled("**Returns** " + textwrap.dedent(rest))
        elif rest:
            items = re.split(r"\n(?=\S)", textwrap.dedent(rest))
            lines = [re.sub(r"^([\w, .*]+?): ", lambda found: ", ".join(f"`{name}`" for name in found[1].split(", ")) + ": ", item) for item in items]
            yield f"**{head.rstrip(':')}**\n" + "\n".join(filled(line, "- ", "  ") for line in lines)


def of_function(function: Callable[..., Any], name: str, level: str) -> Iterator[str]:
    """A function's part of the page."""
    yield f"{level} `{name}`\n```python\n{signature(function, name)}\n```"
    yield from markdown(function.__doc__ or "")


def of_class(kind: type, name: str, methods: str = "") -> Iterator[str]:
    """A class's part of the page."""
    yield f"### `{name}`"
    yield from markdown(kind.__doc__ or "")
    for method in methods.split():
        yield from of_function(getattr(vars(kind)[method], "__func__", vars(kind)[method]), method, "####")


def page() -> str:
    """The whole page."""
    parts = ["# Python API", filled(f"Made from the docstrings by `tests/{Path(__file__).name}`. {inspect.cleandoc(api.__doc__ or '')}")]
    tree = textwrap.dedent((errors.__doc__ or "").split("::")[1].split("\n\nA message")[0].strip("\n"))
    parts.append("## Functions")
    for name in FUNCTIONS:
        parts += of_function(getattr(prtool, name), f"prtool.{name}", "###")
    parts.append("## Classes")
    for name, methods in CLASSES.items():
        parts += of_class(getattr(prtool, name), f"prtool.{name}", methods)
    parts += ["## Reports", "Each has `to_json()`, its values as plain JSON, and all but `VerifyResult` have `table()`, columns and rows."]
    for name in REPORTS:
        parts += of_class(getattr(prtool, name), f"prtool.{name}")
    parts += ["## Errors", "Each is a name of `prtool`.", f"```\n{tree}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
