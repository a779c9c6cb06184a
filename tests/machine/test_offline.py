"""A quick run needs no network: it seals where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest

# Where namespaces are not permitted, every outgoing connection of Python is refused instead, in all child processes.
BLOCK = """
import socket

def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):
        raise OSError("network is blocked")
    return connect(self, address, *rest)

connect, socket.socket.connect = socket.socket.connect, refuse
"""
# A documentation address: with a network it times out or is refused by somebody far away, without one it fails at once.
REACH = """
import socket, time
started = time.monotonic()
try:
    socket.create_connection(("192.0.2.1", 80), timeout=20)
except OSError as error:
    raise SystemExit(0 if time.monotonic() - started < 2 and "timed out" not in str(error) else 1)
raise SystemExit(1)
"""


@pytest.fixture
def cut(project: Any) -> tuple[str, ...]:
    """What to put before a command of ``project`` so that it has no network."""
    tool = shutil.which("unshare")
    prefix = (tool or "", "-rn", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh")
    if tool and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
        return prefix
    project.write("sitecustomize.py", BLOCK)
    return ()


def test_a_quick_run_seals_without_network(project: Any, cut: tuple[str, ...]) -> None:
    reach = subprocess.run([*cut, sys.executable, "-c", REACH], env=project.environment, check=False)
    assert reach.returncode == 0, "the network is not cut off, the rest would prove nothing"
    done = project.zfu("run", "mini", prefix=cut)
    assert done.returncode == 0, done.stderr
    assert project.current()
