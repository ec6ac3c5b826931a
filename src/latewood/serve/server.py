"""Serving a model over HTTP from the command line."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from latewood.core.errors import ConfigurationError

if TYPE_CHECKING:
    from latewood.model.model import Model
    from latewood.serve.limits import Limits

_HERE = ("localhost", "127.0.0.1", "[::1]")


def serve(
    folder: str | Path, *, host: str = "127.0.0.1", port: int = 8000, private: bool = False, limits: Limits | None = None
) -> None:
    """Serve the model in ``folder`` until a signal ends it: a page for people, and an interface for programs.

    Whatever changes the model needs the token that is printed at the start; with ``private``, whatever tells of it too.
    ``port`` 0 takes any that is free. SIGTERM and SIGINT end it within seconds: predictions at hand are answered, and a job
    that needs longer is dropped, which leaves the folder as it was.

    Errors: :class:`ConfigurationError` if the address can't be had or the service's packages are missing, and whatever
    opening the model raises.
    """
    try:
        from latewood.serve.app import make_app
        from latewood.serve.protocol import make_server
    except ImportError as error:
        raise ConfigurationError(f"The service needs the package {error.name}: pip install 'latewood[serve]'.") from error
    from latewood.model.model import Model
    from latewood.serve.limits import Limits
    from latewood.serve.secret import token_of

    bounds = limits or Limits()
    model = Model.open(Path(folder))
    secret = token_of(model.folder)
    listener = _listen(host, port)

    app = make_app(model, secret, limits=bounds, hosts=_hosts(host), private=private)
    _announce(model, host, listener.getsockname()[1], secret)
    make_server(app, bounds).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"Nothing can listen at {host}, port {port} ({reason}); choose another with --port."
        ) from error


def _hosts(host: str) -> tuple[str, ...] | None:
    """The host names that a service for this machine alone answers to; any if it listens for others too."""
    return (*_HERE, _in_url(host)) if _is_loopback(host) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _announce(model: Model, host: str, port: int, secret: str) -> None:
    name = f"{model.folder.resolve().name} (version {model.version.number}, {model.kind})"
    lines = [f"Serving {name} at http://{_in_url(host)}:{port}/#token={quote(secret, safe='')}"]
    if not _is_loopback(host):
        lines.append("Whoever reaches this machine can read from this service, unencrypted; put it behind a proxy with TLS.")
    print("\n".join(lines), file=sys.stderr, flush=True)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
