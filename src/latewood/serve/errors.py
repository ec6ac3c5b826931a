"""What the service answers when it can't do what was asked: always a status and one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from latewood.core.errors import CheckpointError, ConfigurationError, DataError, LatewoodError, StorageError
from latewood.serve import schema
from latewood.serve.limits import BusyError

_STATUS: dict[type[Exception], int] = {
    DataError: 422,
    ConfigurationError: 409,
    CheckpointError: 409,
    StorageError: 503,
    LatewoodError: 409,
    BusyError: 503,
    TimeoutError: 504,
}
_ABOUT = {
    400: "The body is malformed.",
    401: "The token is missing or wrong.",
    404: "There is none of this name.",
    408: "The body did not arrive in time.",
    409: "The model is not in a state for this.",
    413: "The body is too large.",
    421: "The Host header names another machine.",
    422: "A value is not what is needed.",
    500: "A defect of Latewood.",
    503: "There is no room for this now; try again.",
    504: "It took too long.",
}
_WORDS = {
    "string_pattern_mismatch": "It must not be blank, begin or end with a blank, or hold control characters",
    "json_invalid": "The body is not valid JSON",
}

Handler = Callable[[Request, Any], JSONResponse]


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How the OpenAPI document tells of errors with these statuses."""
    return {status: {"model": schema.Error, "description": _ABOUT[status]} for status in statuses}


def handlers() -> dict[type[Exception], Handler]:
    """What answers for each kind of exception."""
    own = dict.fromkeys((LatewoodError, BusyError, TimeoutError), _own)
    return {**own, HTTPException: _refusal, RequestValidationError: _unfit, Exception: _defect}


def _own(request: Request, error: Exception) -> JSONResponse:
    status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    return _answer(status, str(error) or _ABOUT[status])


def _refusal(request: Request, error: HTTPException) -> JSONResponse:
    return _answer(error.status_code, str(error.detail), error.headers)


def _unfit(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _answer(400, "The body is not valid JSON.")
    names = [f"[{name}]" if isinstance(name, int) else f".{name}" for name in first["loc"][1:]]
    # What the request itself holds may be of any length, and in characters that can't be sent back.
    where = "".join(names).lstrip(".")[:80].encode("ascii", "backslashreplace").decode() or "The body"
    return _answer(422, f"{where}: {_WORDS.get(first['type'], first['msg'])}.")


def _defect(request: Request, error: Exception) -> JSONResponse:
    return _answer(500, "A defect of Latewood; the service's log describes it.")


def _answer(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    if status == 503:
        headers = {"retry-after": "1", **(headers or {})}
    return JSONResponse({"detail": detail}, status, headers)
