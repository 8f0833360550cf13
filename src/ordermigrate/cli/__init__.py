"""The command line: parse, call one verb, render, exit with a code that tells whose fault it was."""

from ordermigrate.cli.app import main

__all__ = ["main"]
