"""Several hosts on one machine: network namespaces with an address, shared memory and temporary files of their own.

Needs Linux, root, and `ip` of iproute2. The machine's own network is not touched: the bridge between the hosts is in a
namespace too.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

INTERFACE = "eth0"
"""Of each host."""
_STAY = 'mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs "$TMPDIR" && echo ready && exec cat'
"""Ends with its input, and so with the process that began it."""


class NoHostsError(Exception):
    """This machine does not allow it; says why."""


class NetworkHosts:
    """Hosts that reach each other under 10.231.0.1 and following, for as long as the `with` block runs.

    Args:
        num_hosts: How many, at most 250.
        folder: Where each host finds a temporary folder of its own; seen by all of them, as all of the file system is.

    Raises:
        NoHostsError: On entering: not allowed here.
    """

    def __init__(self, num_hosts: int, folder: Path) -> None:
        self._names = [f"gather-{os.getpid()}-{host}" for host in range(num_hosts)]
        self._hub = f"gather-{os.getpid()}-hub"
        self._folder = folder
        self._keepers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
            raise NoHostsError(f"there is no {' or '.join(missing)} here")
        try:
            _ip("netns", "add", self._hub)
            _ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._hub, "link", "set", "bridge", "up")
            for host, name in enumerate(self._names):
                self._add(host, name)
        except NoHostsError:
            self.__exit__(None, None, None)
            raise
        return self

    def _add(self, host: int, name: str) -> None:
        (self._folder / f"host-{host}").mkdir()
        _ip("netns", "add", name)
        ends = ["link", "add", f"to-{host}", "type", "veth", "peer", "name", INTERFACE, "netns", name]
        _ip("-n", self._hub, *ends)
        _ip("-n", self._hub, "link", "set", f"to-{host}", "master", "bridge", "up")
        _ip("-n", name, "addr", "add", f"{address(host)}/24", "dev", INTERFACE)
        _ip("-n", name, "link", "set", INTERFACE, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        self._keep(host, name)

    def _keep(self, host: int, name: str) -> None:
        """Starts the process whose mounts all others of the host share."""
        command = ["ip", "netns", "exec", name, "unshare", "-m", "sh", "-c", _STAY]
        pipe = subprocess.PIPE
        keeper = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment(host))
        self._keepers.append(keeper)
        if keeper.stdout is None or keeper.stdout.readline() != b"ready\n":
            raise NoHostsError("mounts of its own are not allowed here")

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        while self._keepers:
            self._keepers.pop().communicate()
        for name in (*self._names, self._hub):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """What runs a command on a host."""
        inside = ["--target", str(self._keepers[host].pid), "--mount", "--net", f"--wd={os.getcwd()}"]
        return ["nsenter", *inside, "--", *command]

    def environment(self, host: int) -> dict[str, str]:
        """The variables that go with it."""
        return os.environ | {"GLOO_SOCKET_IFNAME": INTERFACE, "TMPDIR": str(self._folder / f"host-{host}")}

    def sent_nbytes(self, host: int) -> int:
        """How many bytes have left a host over its network, headers of packets included."""
        told = _ip("-n", self._names[host], "-s", "-j", "link", "show", INTERFACE)
        return int(json.loads(told)[0]["stats64"]["tx"]["bytes"])

    def set_link(self, host: int, state: str) -> None:
        """Takes a host's network "down" or "up"."""
        _ip("-n", self._hub, "link", "set", f"to-{host}", state)

    def cut(self, host: int, other: int) -> None:
        """Lets a host reach another one no more, while both reach all others."""
        _ip("-n", self._names[host], "route", "add", "blackhole", f"{address(other)}/32")

    def slow_down(self, host: int, rate: str) -> None:
        """Bounds what leaves a host, such as to "1mbit"."""
        shape = ["tc", "qdisc", "add", "dev", INTERFACE, "root", "tbf", "rate", rate, "burst", "16kb", "latency", "1s"]
        _ip("netns", "exec", self._names[host], *shape)


def address(host: int) -> str:
    """The address of a host."""
    return f"10.231.0.{host + 1}"


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoHostsError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout
