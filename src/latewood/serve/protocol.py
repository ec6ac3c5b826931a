"""HTTP connections that don't wait for ever: uvicorn's own, with a time within which the head of a request must arrive."""

from __future__ import annotations

import asyncio
import math
import socket

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from latewood.serve.limits import Limits


class HastyProtocol(H11Protocol):
    """Closes a connection on which the head of a request takes longer than :attr:`head_seconds`."""

    head_seconds = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does this only for sockets that were made for TCP by name; without it each answer waits 40 ms for the
        # client's acknowledgement of its head.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def make_server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """A server for ``app`` that says nothing but warnings, and waits for no one longer than ``limits`` allow."""

    class Protocol(HastyProtocol):
        head_seconds = limits.head_seconds

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=2 * limits.requests,
        timeout_graceful_shutdown=math.ceil(limits.stop_seconds),
    )
    return uvicorn.Server(config)
