"""The service as a process of its own: how it starts, what it says, and that it stops soon and leaves the model whole."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.model.model import Model
from latewood.serve import serve

START = """
import sys, time
from latewood.model.model import Model
from latewood.serve import serve
rollback, seconds = Model.rollback, float(sys.argv[2])
Model.rollback = lambda self, *rest, **more: (time.sleep(seconds), rollback(self, *rest, **more))[1]
serve(sys.argv[1], port=0, host=sys.argv[3])
"""


class Running:
    """A process that serves a folder, and what it said at the start."""

    def __init__(self, folder: Path, seconds: float, host: str) -> None:
        command = [sys.executable, "-c", START, str(folder), str(seconds), host]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        found = re.search(r"http://\S+:(\d+)/#token=(\S+)", self.said)
        assert found is not None, self.said + self.process.stderr.read()
        self.port, self.token = int(found[1]), found[2]

    def ask(self, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        began = time.monotonic()
        self.process.send_signal(how)
        return self.process.wait(20), time.monotonic() - began


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(folder: Path, seconds: float = 0.0, host: str = "127.0.0.1") -> Running:
        started.append(Running(folder, seconds, host))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        assert one.process.stderr is not None
        one.process.stderr.close()


SLOW = ("/rollback", {"number": 1})  # as slow as START makes it


def test_it_says_where_it_is_once_and_stops_soon(running: Callable[..., Running], image_model: Model) -> None:
    service = running(image_model.folder)
    assert "digits (version 2, images)" in service.said
    token = image_model.folder / "serve-token"
    assert token.read_text() == service.token
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert service.ask("/model")["version"]["number"] == 2
    code, seconds = service.stop()
    assert code in (0, -signal.SIGTERM)
    assert seconds < 5


def test_a_running_job_is_finished_before_it_stops(running: Callable[..., Running], image_model: Model) -> None:
    service = running(image_model.folder, seconds=1.0)
    service.ask(*SLOW)
    time.sleep(0.2)
    assert service.stop()[1] < 8
    assert Model.open(image_model.folder).version.number == 3


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_takes_too_long_is_left_and_the_model_is_whole(
    running: Callable[..., Running], image_model: Model, how: signal.Signals
) -> None:
    service = running(image_model.folder, seconds=60.0)
    service.ask(*SLOW)
    time.sleep(0.2)
    assert service.stop(how)[1] < 10
    model = Model.open(image_model.folder)
    assert model.version.number == 2
    model.rollback(1)
    assert model.version.number == 3


def test_an_open_connection_does_not_keep_it_from_stopping(running: Callable[..., Running], image_model: Model) -> None:
    service = running(image_model.folder)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        time.sleep(0.2)
        assert service.stop()[1] < 12


def test_it_answers_no_other_name_on_this_machine_and_warns_on_a_network(
    running: Callable[..., Running], image_model: Model
) -> None:
    def status(service: Running) -> bytes:
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n")
            return connection.recv(100)[9:12]

    assert status(running(image_model.folder)) == b"421"
    open_to_all = running(image_model.folder, host="0.0.0.0")
    assert status(open_to_all) == b"200"
    assert open_to_all.process.stderr is not None
    assert "proxy with TLS" in open_to_all.process.stderr.readline()


def test_an_address_that_is_taken_or_not_ours_is_told(image_model: Model) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match="choose another"):
        serve(image_model.folder, port=taken.getsockname()[1])
    for host, port in (("192.0.2.1", 0), ("no.such.host.invalid", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(ConfigurationError, match="choose another"):
            serve(image_model.folder, host=host, port=port)


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        serve(tmp_path)


def test_missing_packages_are_told_with_what_to_install(image_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("latewood.serve.")]:
        if module != "latewood.serve.server":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ConfigurationError, match=r"latewood\[serve\]"):
        serve(image_model.folder)
