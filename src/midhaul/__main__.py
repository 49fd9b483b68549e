"""`python -m midhaul`."""

from midhaul.cli import entry

entry()
