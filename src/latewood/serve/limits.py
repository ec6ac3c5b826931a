"""How much the service takes on, and the guard at its door that turns away what is too much, too slow or not for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from io import BytesIO

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latewood.core.errors import DataError

#: The formats of images that the service accepts: their decoders are the ones that have been attacked most and mended.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class BusyError(Exception):
    """The service has no room for this now; later it may."""


@dataclass(frozen=True)
class Limits:
    """How much is taken on at once; beyond it, a request is refused with the reason."""

    body_bytes: int = 32 * 2**20
    """Of one request."""
    bodies_bytes: int = 256 * 2**20
    """Of all requests that are being read or answered."""
    head_seconds: float = 10.0
    """For the head of a request to arrive."""
    body_seconds: float = 60.0
    """For the body of a request to arrive."""
    answer_seconds: float = 30.0
    """For a prediction."""
    stop_seconds: float = 5.0
    """For the job at hand, when the service stops."""
    requests: int = 1024
    """Requests at once."""
    batch_inputs: int = 64
    """Inputs in one call of the model."""
    batch_seconds: float = 0.003
    """How long the first input of a batch waits for others."""
    waiting_inputs: int = 2048
    """Inputs that wait for a batch."""
    waiting_jobs: int = 8
    """Changes of the model that wait for their turn."""
    pixels: int = 50_000_000
    """Of one image; decoded, each takes three bytes."""


def check_images(images: Sequence[bytes], limits: Limits) -> None:
    """Read the heads of image files, and no pixel. Errors: :class:`DataError` for one in no accepted format or too large."""
    from PIL import Image

    for index, encoded in enumerate(images):
        try:
            with Image.open(BytesIO(encoded), formats=FORMATS) as image:
                width, height = image.size
        except Image.DecompressionBombError as error:
            raise DataError(f"images[{index}] has too many pixels; at most {limits.pixels:,} are accepted.") from error
        except Exception as error:  # damaged heads make Pillow raise exceptions of many types
            raise DataError(f"images[{index}] is damaged or not one of {', '.join(FORMATS)}.") from error
        if width * height > limits.pixels:
            raise DataError(f"images[{index}] has {width}x{height} pixels; at most {limits.pixels:,} are accepted.")


class Guard:
    """Before the application: the Host header, the number of requests at once, and each body's size and time.

    With ``hosts``, requests for any other host name are refused: a page elsewhere whose name was bound to this machine's
    address (DNS rebinding) must not reach a service that listens for this machine alone.
    """

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Collection[str] | None = None) -> None:
        self._app, self._limits, self._hosts = app, limits, hosts
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._handle(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(scope, receive, self._limits, self._take)
        send = _completed(send, body)
        if self._hosts is not None and _host(scope) not in self._hosts:
            refusal = JSONResponse({"detail": "This service does not answer to the host name in the request."}, 421)
            await refusal(scope, receive, send)
            return
        if self._requests >= self._limits.requests and scope["path"] != "/healthz":
            refusal = JSONResponse({"detail": "Too many requests at once; try again in a moment."}, 503, {"retry-after": "1"})
            await refusal(scope, receive, send)
            return
        self._requests += 1
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._requests -= 1
            self._bytes -= body.read

    def _take(self, count: int) -> None:
        if self._bytes + count > self._limits.bodies_bytes:
            raise HTTPException(503, "Too much is being received at once; try again in a moment.", {"retry-after": "1"})
        self._bytes += count


class _Body:
    """The body of one request, counted and timed while it arrives."""

    def __init__(self, scope: Scope, receive: Receive, limits: Limits, take: Callable[[int], None]) -> None:
        self._receive, self._limits, self._take = receive, limits, take
        headers = dict(scope["headers"])
        self._declared = headers.get(b"content-length", b"0")
        self.whole = self._declared == b"0" and b"transfer-encoding" not in headers
        self.read = 0
        self._deadline: float | None = None

    async def receive(self) -> Message:
        if self.whole:
            return await self._receive()  # nothing is awaited any more but the end of the connection
        self._check(int(self._declared[:20]) if self._declared.isdigit() else 0)
        message = await self._in_time()
        count = len(message.get("body", b""))
        self._check(self.read + count)
        self._take(count)
        self.read += count
        self.whole = not message.get("more_body", False)
        return message

    def _check(self, count: int) -> None:
        if count > self._limits.body_bytes:
            raise HTTPException(413, f"The body of a request may have {self._limits.body_bytes:,} bytes at most.")

    async def _in_time(self) -> Message:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._limits.body_seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            raise HTTPException(
                408, f"The body of a request must arrive within {self._limits.body_seconds:g} seconds."
            ) from None


def _host(scope: Scope) -> str:
    """The host name that the request was meant for, without the port; nothing if it names none, or several."""
    hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
    return re.sub(r":[0-9]*$", "", hosts[0]) if len(hosts) == 1 else ""


def _completed(send: Send, body: _Body) -> Send:
    """Give every response the headers that make browsers careful, and end a connection of which not all was read."""

    async def complete(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            added = _HEADERS if body.whole else {**_HEADERS, "connection": "close"}
            extra = [(name.encode(), value.encode()) for name, value in added.items() if name.encode() not in given]
            message["headers"] = [*message["headers"], *extra]
        await send(message)

    return complete
