"""Configuration: names and types are checked before anything is built, and a wrong one gets one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from latewood import Recipe
from latewood.core.configure import build, merged, parameters_of, parse_assignments, read_toml, settable, validate
from latewood.core.errors import ConfigurationError


@dataclass
class Schedule:
    """Settings of which one has no default."""

    start: int
    end: int = 9


class Method:
    """What a learner looks like from outside."""

    def __init__(
        self,
        backbone: object,
        memory: int = 200,
        strength: float = 0.5,
        anchor: bool = False,
        policy: Literal["reservoir", "balanced"] = "reservoir",
        layers: tuple[int, ...] = (4,),
        limit: float | None = None,
        name: str = "method",
        recipe: Recipe = Recipe(epochs=5),
    ) -> None:
        self.backbone, self.memory, self.strength, self.anchor, self.policy = backbone, memory, strength, anchor, policy
        self.layers, self.limit, self.name, self.recipe = layers, limit, name, recipe


def made(**settings: Any) -> Method:
    return build(Method, settings, "method", backbone="net")


# Values


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "20", 20),
        (int, "-3", -3),
        (int, "1e3", 1000),
        (int, 20, 20),
        (int, 20.0, 20),
        (float, "0.1", 0.1),
        (float, "1e-4", 1e-4),
        (float, "3", 3.0),
        (float, 3, 3.0),
        (bool, "true", True),
        (bool, "False", False),
        (bool, "no", False),
        (str, "none", "none"),
        (str, "3", "3"),
        (Literal["on", "off"], "on", "on"),
        (Literal[1, 2], "2", 2),
        (tuple[int, ...], "1,2,3", (1, 2, 3)),
        (tuple[int, ...], "[1, 2]", (1, 2)),
        (tuple[int, ...], "7", (7,)),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[float, float], "0.9,0.99", (0.9, 0.99)),
        (list[str], "['a', 'b']", ["a", "b"]),
        (float | None, "none", None),
        (float | None, "None", None),
        (float | None, "0.5", 0.5),
        (Optional[int], None, None),  # noqa: UP045
        (int | str, "7", "7"),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Any, "as it is", "as it is"),
    ],
)
def test_a_text_is_read_as_the_type_asks(annotation: Any, text: Any, value: Any) -> None:
    found = validate(text, annotation, "x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("annotation", "wrong"),
    [
        (int, "many"),
        (int, "2.5"),
        (int, 2.5),
        (int, None),
        (int, ""),
        (float, "fast"),
        (float, "[1]"),
        (bool, "perhaps"),
        (bool, 2),
        (Literal["on", "off"], "maybe"),
        (tuple[int, ...], "a,b"),
        (tuple[float, float], "1"),
        (float | None, "nothing"),
        (str, 3),
        (dict[str, int], "x"),
    ],
)
def test_a_value_that_does_not_fit_gets_one_sentence_with_the_place_and_the_value(annotation: Any, wrong: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        validate(wrong, annotation, "replay.memory")
    sentence = str(refused.value)
    assert sentence.startswith(f"replay.memory can't be {wrong!r}: ")
    assert sentence.endswith(".")
    assert not sentence.endswith("..")
    assert "\n" not in sentence
    assert "pydantic" not in sentence


def test_an_object_of_a_class_is_passed_as_it_is() -> None:
    thing = Method("net")
    assert validate(thing, Method, "x") is thing
    with pytest.raises(ConfigurationError):
        validate("text", Method, "x")


# Building


def test_what_is_not_set_keeps_its_default() -> None:
    method = made()
    assert (method.backbone, method.memory, method.recipe.epochs) == ("net", 200, 5)


def test_settings_of_every_type_arrive_as_their_type() -> None:
    method = made(memory="50", strength="1", anchor="true", policy="balanced", layers="1,2", limit="0.5", name="3")
    assert (method.memory, method.strength, method.anchor, method.policy) == (50, 1.0, True, "balanced")
    assert (method.layers, method.limit, method.name) == ((1, 2), 0.5, "3")
    assert made(limit="none").limit is None


@pytest.mark.parametrize(
    "settings", [{"lr": "0.5", "epochs": 2}, {"recipe": {"lr": "0.5"}, "epochs": "2"}, {"recipe": {"lr": 0.5, "epochs": 2}}]
)
def test_fields_of_the_recipe_can_be_set_nested_and_flat(settings: dict[str, Any]) -> None:
    recipe = made(**settings).recipe
    assert recipe == Recipe(epochs=2, lr=0.5)


def test_fields_that_are_not_set_keep_the_methods_own_default() -> None:
    assert made(lr=0.5).recipe.epochs == 5


def test_building_leaves_the_settings_and_the_defaults_as_they_are() -> None:
    settings = {"recipe": {"lr": "0.5"}, "epochs": "2"}
    build(Method, settings, "method", backbone="net")
    assert settings == {"recipe": {"lr": "0.5"}, "epochs": "2"}
    assert made().recipe == Recipe(epochs=5)


@pytest.mark.parametrize(
    ("wrong", "right"), [("memroy", "memory"), ("strenght", "strength"), ("epoch", "epochs"), ("batchsize", "batch_size")]
)
def test_a_misspelt_name_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigurationError, match=f"method has no parameter '{wrong}' .did you mean '{right}'"):
        made(**{wrong: 1})


def test_a_misspelt_field_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"method\.recipe has no field 'epoch' \(did you mean 'epochs'\?\)"):
        made(recipe={"epoch": 3})


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(ConfigurationError, match=r"no parameter 'xyzzy' \(there are: anchor, .*memory.*\)") as refused:
        made(xyzzy=1)
    assert "backbone" not in str(refused.value)  # it is given, not set


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"memory": "many"}, r"^method\.memory can't be 'many': .*integer.*\.$"),
        ({"policy": "lifo"}, r"^method\.policy can't be 'lifo': .*'reservoir' or 'balanced'\.$"),
        ({"lr": "fast"}, r"^method\.recipe\.lr can't be 'fast': .*number.*\.$"),
        ({"recipe": {"optimizer": "rmsprop"}}, r"^method\.recipe\.optimizer can't be 'rmsprop': .*'sgd', 'adam' or 'adamw'\.$"),
        ({"epochs": "0"}, r"^recipe\.epochs must be at least 1, but it is 0\.$"),
        ({"recipe": "fast"}, r"^method\.recipe has several fields; set one of them, such as method\.recipe\.<field>\.$"),
    ],
)
def test_a_wrong_value_gets_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        made(**settings)


def test_what_is_given_can_not_be_set() -> None:
    with pytest.raises(ConfigurationError, match="method has no parameter 'backbone'"):
        made(backbone="other")


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(ConfigurationError, match="method needs 'backbone' to be set"):
        build(Method, {"memory": 3}, "method")


def test_functions_and_dataclasses_are_built_too() -> None:
    @dataclass
    class Point:
        x: int
        y: int = 2

    def stream(steps: int, seed: int = 0) -> tuple[int, int]:
        return steps, seed

    assert build(stream, {"steps": "5"}, "stream") == (5, 0)
    assert build(Point, {"x": "1"}, "point") == Point(1, 2)


def test_any_further_keywords_are_neither_needed_nor_settable() -> None:
    def net(width: int = 3, *args: int, **options: int) -> int:
        return width

    assert build(net, {"width": "4"}, "net") == 4
    for name in ("args", "options"):
        with pytest.raises(ConfigurationError, match=f"net has no parameter '{name}'"):
            build(net, {name: 1}, "net")
    assert settable(net) == {"width"}


def test_a_recipe_without_a_default_is_made_of_what_is_set() -> None:
    def learner(recipe: Recipe) -> Recipe:
        return recipe

    assert build(learner, {"lr": "0.5"}, "learner") == Recipe(lr=0.5)
    with pytest.raises(ConfigurationError, match="learner needs 'recipe' to be set"):
        build(learner, {}, "learner")


def test_a_dataclass_that_lacks_a_field_is_told() -> None:
    def learner(schedule: Schedule) -> Schedule:
        return schedule

    assert build(learner, {"start": 1}, "learner") == Schedule(1, 9)
    with pytest.raises(ConfigurationError, match="start"):
        build(learner, {"end": 1}, "learner")


def test_a_field_of_two_parameters_must_be_set_nested() -> None:
    def learner(first: Recipe = Recipe(), second: Recipe = Recipe()) -> tuple[float, float]:
        return first.lr, second.lr

    assert build(learner, {"first": {"lr": 0.5}}, "learner") == (0.5, 0.03)
    with pytest.raises(ConfigurationError, match=r"first\.lr.*second\.lr"):
        build(learner, {"lr": 0.5}, "learner")


def test_a_parameter_goes_before_a_field_of_the_same_name() -> None:
    def learner(lr: float = 1.0, recipe: Recipe = Recipe()) -> tuple[float, float]:
        return lr, recipe.lr

    assert build(learner, {"lr": "2"}, "learner") == (2.0, 0.03)
    assert build(learner, {"recipe": {"lr": "2"}}, "learner") == (1.0, 2.0)


def test_settable_lists_parameters_and_fields() -> None:
    names = settable(Method)
    assert {"memory", "recipe", "lr", "epochs", "compile"} <= names
    assert "self" not in names
    assert parameters_of(Method)["limit"].annotation == float | None


# Where settings come from


def test_assignments_nest_by_dots() -> None:
    texts = ["memory=500", "recipe.lr=0.1", "recipe.schedule = cosine", "note=a=b", "empty="]
    recipe = {"lr": "0.1", "schedule": "cosine"}
    assert parse_assignments(texts) == {"memory": "500", "recipe": recipe, "note": "a=b", "empty": ""}
    assert parse_assignments([]) == {}
    assert parse_assignments(["memory=1", "memory=2"]) == {"memory": "2"}


@pytest.mark.parametrize("text", ["memory", "=5", " = 5", ""])
def test_what_is_no_assignment_is_told(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_assignments([text])
    assert str(refused.value) == f"{text!r} is not of the form name=value."


@pytest.mark.parametrize("text", ["recipe.=5", ".lr=5", "recipe..lr=5"])
def test_an_assignment_with_an_empty_name_is_told(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^'{text}' .*name"):
        parse_assignments([text])


def test_a_value_has_no_fields() -> None:
    with pytest.raises(ConfigurationError, match=r"'recipe\.lr=1' sets a field of recipe, which has a value already"):
        parse_assignments(["recipe=fast", "recipe.lr=1"])


def test_a_toml_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('memory = 5\n[recipe]\nlr = 0.1\nmilestones = [1, 2]\nschedule = "step"\n')
    settings = read_toml(path)
    assert settings == {"memory": 5, "recipe": {"lr": 0.1, "milestones": [1, 2], "schedule": "step"}}
    assert made(**settings).recipe.milestones == (1, 2)


def _missing(path: Path) -> None: ...


def _folder(path: Path) -> None:
    path.mkdir()


def _broken(path: Path) -> None:
    path.write_text("memory = \n")


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_missing, r"The configuration file .*run\.toml can't be read: No such file or directory\.$"),
        (_folder, r"The configuration file .*run\.toml can't be read: Is a directory\.$"),
        (_broken, r"The configuration file .*run\.toml is not TOML: .*line 1.*\.$"),
        (_binary, r"The configuration file .*run\.toml is not TOML: .*\.$"),
    ],
)
def test_a_file_that_can_not_be_read_gets_a_sentence(tmp_path: Path, make: Callable[[Path], None], sentence: str) -> None:
    make(tmp_path / "run.toml")
    with pytest.raises(ConfigurationError, match=sentence):
        read_toml(tmp_path / "run.toml")


def test_the_second_settings_go_before_the_first_at_every_depth() -> None:
    first = {"memory": 1, "recipe": {"lr": 1, "epochs": 1}, "kept": 0, "was": {"a": 1}, "becomes": 1}
    second = {"memory": 2, "recipe": {"lr": 2}, "was": 1, "becomes": {"a": 1}, "new": {"b": {"c": 1}}}
    both = merged(first, second)
    wanted: dict[str, Any] = {"memory": 2, "recipe": {"lr": 2, "epochs": 1}, "kept": 0, "was": 1, "becomes": {"a": 1}}
    assert both == {**wanted, "new": {"b": {"c": 1}}}
    assert first["recipe"] == {"lr": 1, "epochs": 1}
    assert merged({}, second) == second
    assert merged(first, {}) == first
