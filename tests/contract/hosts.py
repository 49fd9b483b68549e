"""Hosts on this machine: network namespaces, each with an address of its own, on links that can be cut and slowed.

It takes the rights to make network namespaces (root, as a rule), and `ip` and `tc` of iproute2.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any


class NoHosts(Exception):
    """This machine can't have hosts; the sentence says why."""


@dataclass(frozen=True)
class Link:
    """A cable between a server and a host. `server` and `host` are their addresses on it."""

    hub: str
    net: str
    server: str
    host: str
    near: str
    far: str

    def cut(self) -> None:
        """Takes the link down at both ends."""
        _ip("-n", self.net, "link", "set", self.far, "down")
        _ip("-n", self.hub, "link", "set", self.near, "down")

    def mend(self) -> None:
        _ip("-n", self.net, "link", "set", self.far, "up")
        _ip("-n", self.hub, "link", "set", self.near, "up")

    def limit(self, rate: str) -> None:
        """Lets no more than a rate through each way, such as 1mbit (tc-tbf)."""
        for net, end in ((self.hub, self.near), (self.net, self.far)):
            words = ("rate", rate, "burst", "16kb", "latency", "200ms")
            _run("tc", "-n", net, "qdisc", "replace", "dev", end, "root", "tbf", *words)

    def told(self) -> list[dict[str, Any]]:
        """Gives what tc counted at both ends: `bytes`, `overlimits` (packets that had to wait), `drops`."""
        found = []
        for net, end in ((self.hub, self.near), (self.net, self.far)):
            found += json.loads(_run("tc", "-n", net, "-s", "-j", "qdisc", "show", "dev", end))
        return found


@contextmanager
def hosts(*names: str) -> Iterator[list[Link]]:
    """Gives the links of a server (the namespace `hub`) with hosts of these names. Raises: NoHosts."""
    mark = f"mh{os.getpid() % 100_000}"
    hub = f"{mark}hub"
    made: list[Link] = []
    nets: list[str] = []
    try:
        _ip("netns", "add", hub)
        nets.append(hub)
        for number, name in enumerate(names, 1):
            link = Link(
                hub,
                f"{mark}{name}",
                f"10.77.{number}.1",
                f"10.77.{number}.2",
                f"{mark}n{number}",
                f"{mark}f{number}",
            )
            _ip("netns", "add", link.net)
            nets.append(link.net)
            _ip("link", "add", link.near, "netns", hub, "type", "veth", "peer", "name", link.far, "netns", link.net)
            for net, end, address in ((hub, link.near, link.server), (link.net, link.far, link.host)):
                _ip("-n", net, "address", "add", f"{address}/24", "dev", end)
                _ip("-n", net, "link", "set", "lo", "up")
                _ip("-n", net, "link", "set", end, "up")
            made.append(link)
        yield made
    finally:
        for net in nets:
            with suppress(NoHosts):
                _ip("netns", "delete", net)


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise NoHosts(f"hosts in network namespaces want {words[0]} of iproute2, which isn't installed") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(str(error.stderr).split())
        raise NoHosts(f"hosts in network namespaces can't be made here: {' '.join(words)}: {said}") from None
