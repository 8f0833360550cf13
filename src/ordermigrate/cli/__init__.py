"""The command line: parse, call one verb, render, exit with a code that says what happened."""

from ordermigrate.cli.app import main

__all__ = ["main"]
