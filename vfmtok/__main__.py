"""`python -m vfmtok` is `vfmtok`."""

from vfmtok.cli import program

program()
