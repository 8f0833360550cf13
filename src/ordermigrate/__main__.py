"""Run the command line as `python -m ordermigrate`."""

from ordermigrate.cli import main

main()
