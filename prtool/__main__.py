"""`python -m prtool`: the same as `prtool`."""

from prtool.cli import main

main()
