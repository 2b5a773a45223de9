"""sd_notify against a real datagram socket."""

import os
import socket
from pathlib import Path

import pytest

from daemon import notify


def test_states_arrive_at_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify.ready("listening")
        assert notify.watchdog()
        assert notify.stopping()
        received = [systemd.recv(200) for _ in range(3)]
    assert received == [b"READY=1\nSTATUS=listening", b"WATCHDOG=1", b"STOPPING=1"]


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"lakehouse-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify.watchdog()
        assert systemd.recv(20) == b"WATCHDOG=1"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.ready()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify.ready()


def test_the_watchdog_is_petted_twice_per_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog_interval_s() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_interval_s() is None
