"""Configuration: a constructor's signature is what can be set; names and types are checked before anything is built."""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from latewood.core.errors import ConfigurationError
from latewood.core.registry import nearest

Built = TypeVar("Built")


def build(target: Callable[..., Built], settings: Mapping[str, Any], what: str, **given: Any) -> Built:
    """Call ``target`` (a class or a function) with validated settings.

    ``settings`` may name a parameter, or a field of a parameter that is a dataclass, nested (``{"recipe": {"lr": 0.1}}``)
    or by its own name where only one parameter has it (``{"lr": 0.1}``). Text is read as the parameter's type asks.
    ``given`` are arguments that are passed as they are and can't be set. ``what`` names the target in errors.

    Errors: :class:`ConfigurationError` for a name that does not exist (with the nearest that does) or a value that does
    not fit its type.

    >>> from latewood.core.recipe import Recipe
    >>> def learner(memory: int = 10, recipe: Recipe = Recipe()): return memory, recipe.lr
    >>> build(learner, {"memory": "20", "lr": "0.5"}, "learner")
    (20, 0.5)
    """
    parameters = parameters_of(target)
    arguments: dict[str, Any] = dict(given)
    nested: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        owner = _owner(name, parameters)
        if name in given or (owner is None and name not in parameters):
            shared = _owners(name, parameters)
            if len(shared) > 1:
                raise ConfigurationError(f"{what} has several {name!r}: set {' or '.join(f'{o}.{name}' for o in shared)}.")
            known = [n for n in parameters if n not in given]
            fields = [f.name for n in known for f in _fields(parameters[n])]
            raise ConfigurationError(f"{what} has no parameter {name!r}{nearest(name, known + fields)}.")
        if name in parameters and not _fields(parameters[name]):
            arguments[name] = validate(value, parameters[name].annotation, f"{what}.{name}")
        else:
            inner = value if owner is None else {name: value}
            if not isinstance(inner, Mapping):
                raise ConfigurationError(f"{what}.{name} has several fields; set one of them, such as {what}.{name}.<field>.")
            nested.setdefault(owner or name, {}).update(inner)
    for name, inner in nested.items():
        arguments[name] = _replaced(parameters[name], inner, f"{what}.{name}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise ConfigurationError(f"{what} needs {missing[0]!r} to be set.")
    return target(**arguments)


def parameters_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor or function, with annotations resolved."""
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    hints = typing.get_type_hints(function)
    signature = inspect.signature(target)
    named = {n: p for n, p in signature.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return {n: p.replace(annotation=hints.get(n, Any)) for n, p in named.items()}


def settable(target: Callable[..., Any]) -> set[str]:
    """Every name that :func:`build` takes for this target: parameters, and fields of those that are dataclasses."""
    parameters = parameters_of(target)
    return {*parameters, *(f.name for p in parameters.values() for f in _fields(p))}


def validate(value: Any, annotation: Any, where: str) -> Any:
    """``value`` as the annotation asks. Errors: :class:`ConfigurationError`, which names ``where``."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:
        adapter = TypeAdapter(annotation)
    candidates = [value, *_readings(value)] if isinstance(value, str) else [value]
    reason = ""
    for candidate in candidates:
        try:
            return adapter.validate_python(candidate)
        except ValidationError as error:
            reason = reason or error.errors()[0]["msg"]
    raise ConfigurationError(f"{where} can't be {value!r}: {reason[0].lower()}{reason[1:]}.")


def parse_assignments(assignments: typing.Iterable[str]) -> dict[str, Any]:
    """``name=value`` texts as nested settings; dots nest.

    >>> parse_assignments(["memory=500", "recipe.lr=0.1"])
    {'memory': '500', 'recipe': {'lr': '0.1'}}
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigurationError(f"{assignment!r} is not of the form name=value.")
        *path, last = name.strip().split(".")
        if not all((*path, last)):
            raise ConfigurationError(f"{assignment!r} is not of the form name=value.")
        place = settings
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigurationError(f"{assignment!r} sets a field of {part}, which has a value already.")
        place[last] = value.strip()
    return settings


def read_toml(path: str | Path) -> dict[str, Any]:
    """Settings from a TOML file. Errors: :class:`ConfigurationError` if it is missing or is not TOML."""
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigurationError(f"The configuration file {path} can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The configuration file {path} is not TOML: {error}.") from error


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both settings, nested; where both say something the second counts."""
    result = dict(first)
    for name, value in second.items():
        before = result.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[name] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result


def _readings(text: str) -> list[Any]:
    """What a text may stand for: a number, a truth value, a list (also without brackets), nothing."""
    if text.lower() == "none":
        return [None]
    readings = []
    for candidate in (text, f"[{text}]"):
        try:
            readings.append(tomllib.loads(f"value = {candidate}")["value"])
        except tomllib.TOMLDecodeError:
            continue
    return readings


def _fields(parameter: inspect.Parameter) -> tuple[dataclasses.Field[Any], ...]:
    kind = parameter.annotation
    return dataclasses.fields(kind) if dataclasses.is_dataclass(kind) and not isinstance(kind, types.GenericAlias) else ()


def _owner(name: str, parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """The one parameter whose type is a dataclass with the field ``name``, unless ``name`` is a parameter itself."""
    if name in parameters:
        return None
    owners = _owners(name, parameters)
    return owners[0] if len(owners) == 1 else None


def _owners(name: str, parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    return [n for n, p in parameters.items() if any(f.name == name for f in _fields(p))]


def _replaced(parameter: inspect.Parameter, settings: Mapping[str, Any], what: str) -> Any:
    hints = typing.get_type_hints(parameter.annotation)
    for name in settings:
        if name not in hints:
            raise ConfigurationError(f"{what} has no field {name!r}{nearest(name, hints)}.")
    values = {name: validate(value, hints[name], f"{what}.{name}") for name, value in settings.items()}
    if parameter.default is not parameter.empty:
        return dataclasses.replace(parameter.default, **values)
    try:
        return parameter.annotation(**values)
    except TypeError as error:
        raise ConfigurationError(f"{what} is not complete: {error}.") from error
