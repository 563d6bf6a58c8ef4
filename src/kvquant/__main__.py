"""`python -m kvquant`."""

from kvquant.cli.main import main

main()
