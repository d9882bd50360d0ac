"""`python -m prtool`: the same as `prtool`."""

from prtool.cli.main import main

main()
