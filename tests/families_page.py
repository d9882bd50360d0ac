"""Makes the table of families in docs/models.md from `families.py`: `python tests/families_page.py`."""

from pathlib import Path

from families import FAMILIES, Family

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- families: made by tests/families_page.py -->", "<!-- end of families -->"


def row(family: Family) -> str:
    """A family's line of the table."""
    merging = f"no: {family.not_merging}" if family.not_merging else "yes"
    int8 = ", int8" if family.int8 else ""
    shape = family.geometry
    real = f", real size ({shape.parameters:.0f} M)" if family.real_size else ""
    tokens = f"{(shape.side // shape.patch) ** 2} + {shape.prefix}"
    return f"| {family.name} | `{family.command}` | {shape.side} px, {tokens} | {merging} | reduced{int8}{real} |"


def table() -> str:
    """The whole table."""
    head = ["| family | how to name it | image, patches + prefix | merging | tested here |", "| -- | -- | -- | -- | -- |"]
    return "\n".join([*head, *map(row, FAMILIES)])


def page(text: str) -> str:
    """The page with the table between its markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
