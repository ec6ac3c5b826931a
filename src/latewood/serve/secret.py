"""The secret that whoever changes the model must show."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from pathlib import Path

from latewood.core.errors import ConfigurationError, StorageError

FILE = "serve-token"
VARIABLE = "LATEWOOD_TOKEN"
_FORM = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")  # what an Authorization header can carry (RFC 6750), and hard to guess


def token_of(folder: Path) -> str:
    """The token of the model in ``folder``: ``LATEWOOD_TOKEN`` if it is set, else the file ``serve-token``, made on demand.

    Errors: :class:`ConfigurationError` for a token that is too short, or whose file other users may read;
    :class:`StorageError` if the file can't be made.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> token_of(folder) == token_of(folder)
    True
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return _checked(given, VARIABLE)
    path = folder / FILE
    try:
        return _make(path)
    except FileExistsError:
        return _checked(_read(path), str(path))
    except OSError as error:
        raise StorageError(f"The token {path} can't be made: {error.strerror}; {VARIABLE} may hold one instead.") from error


def matches(token: str, authorization: str | None) -> bool:
    """Whether an Authorization header shows the token; takes as long whatever part of it is right."""
    scheme, _, shown = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), token.encode())


def _make(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(token)
        file.flush()
        os.fsync(handle)
    return token


def _read(path: Path) -> str:
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise ConfigurationError(f"Other users may read the token {path}; delete it, and a new one is made.")
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The token {path} can't be read ({error}); delete it, and a new one is made.") from error


def _checked(token: str, where: str) -> str:
    if _FORM.fullmatch(token) is None:
        raise ConfigurationError(f"{where} must hold 16 to 512 letters, digits or characters of -._~+/=, and nothing else.")
    return token
