"""What travels over the wire: every request and every answer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

if TYPE_CHECKING:
    from latewood.model import facts, model, store
    from latewood.serve import jobs

INPUTS = 256
_TEXT, _LABEL, _TOP = 20_000, 200, 100
# No control characters, and no blanks at the ends.
_VISIBLE = r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f])?$"

Text = Annotated[str, Field(min_length=1, max_length=_TEXT, pattern=r"\S")]
Label = Annotated[str, Field(min_length=1, max_length=_LABEL, pattern=_VISIBLE)]
Labels = Annotated[list[Label], Field(min_length=1, max_length=INPUTS, description="One for each input.")]
# JSON knows one kind of number: 3.0 is a whole one, and some languages write it so.
_WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
Top = Annotated[int, Field(ge=1, le=_TOP, description="How many guesses for each input, at most."), _WHOLE]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Answer(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class TextsToPredict(_Request):
    """Texts to name, and how many classes to name for each."""

    texts: list[Text] = Field(min_length=1, max_length=INPUTS)
    top: Top = 1


class TextsToLearn(_Request):
    """Texts with a label each."""

    texts: list[Text] = Field(min_length=1, max_length=INPUTS)
    labels: Labels


class NumberedVersion(_Request):
    """A version, by its number."""

    number: Annotated[int, Field(ge=0, lt=2**31), _WHOLE]


class Error(_Answer):
    """What was wrong and what would be right, in one sentence."""

    detail: str


class Health(_Answer):
    """The service is up."""

    status: Literal["ok"]


class Guess(_Answer):
    """A class, and how sure the model is of it."""

    label: str
    confidence: float = Field(ge=0, le=1)


class Predictions(_Answer):
    """What one version makes of the inputs."""

    version: int = Field(description="The version of the model that made them.")
    predictions: list[list[Guess]] = Field(description="For each input, best first.")


class KnownClass(_Answer):
    """A class that a version knows."""

    name: str
    samples: int = Field(description="How many it was learned from.")
    score: float | None = Field(None, description="The share of its held-out samples that this version gets right.")


class Loss(_Answer):
    """A class that a version knows less well than the one before."""

    label: str
    before: float
    after: float


class Version(_Answer):
    """A version of the model."""

    number: int
    parent: int | None
    time: str
    event: str = Field(description="What made it: a learning, a way back, ...")
    about: str
    candidate: bool = Field(description="Held back, because it lost too much; accept or reject it.")
    samples: int
    added: int
    classes: int
    lost: list[Loss]
    available: bool = Field(description="Whether it can be rolled back to; what old versions need is removed in time.")

    @classmethod
    def of(cls, version: store.Version, available: bool = True) -> Version:
        content: Mapping[str, Any] = version.content
        return cls(
            number=version.number,
            parent=version.parent,
            time=version.time,
            event=version.event,
            about=version.about,
            candidate=version.candidate,
            samples=content["samples"],
            added=content["added"],
            classes=sum(known["samples"] > 0 for known in content["classes"]),
            lost=[Loss.model_validate(loss) for loss in content["lost"]],
            available=available and not version.candidate,
        )


class Model(_Answer):
    """The model as it is now."""

    name: str
    kind: Literal["images", "text"]
    version: Version
    candidate: Version | None
    classes: list[KnownClass]
    jobs: int = Field(description="Changes that wait or are being made.")

    @classmethod
    def of(cls, model: model.Model, jobs: int) -> Model:
        version, candidate = model.version, model.candidate
        return cls(
            name=model.folder.resolve().name,
            kind=model.kind,
            version=Version.of(version),
            candidate=Version.of(candidate) if candidate else None,
            classes=[KnownClass.model_validate(known) for known in model.known],
            jobs=jobs,
        )


class Versions(_Answer):
    """The versions of the model, and which is in use."""

    current: int
    versions: list[Version] = Field(description="Oldest first; the newest where there are more than were asked for.")


class Learned(_Answer):
    """What a learning did."""

    held: bool = Field(description="Whether the new version lost too much, and waits as a candidate.")
    added: int
    duplicates: int
    relabelled: int
    skipped: list[str]
    new_classes: list[str]
    lost: list[Loss]

    @classmethod
    def of(cls, outcome: facts.Outcome) -> Learned:
        return cls(
            held=outcome.held,
            added=outcome.added,
            duplicates=outcome.duplicates,
            relabelled=outcome.relabelled,
            skipped=[str(problem) for problem in outcome.skipped],
            new_classes=list(outcome.new_classes),
            lost=[Loss.model_validate(loss) for loss in outcome.lost],
        )


class Job(_Answer):
    """A change of the model: made in turn, in the background; ask for it again until it is done or failed."""

    id: str
    kind: Literal["learn", "rollback", "accept", "reject"]
    state: Literal["waiting", "running", "done", "failed"]
    submitted: datetime
    finished: datetime | None
    doing: str | None = Field(description="What it is at.")
    steps: int
    steps_done: int
    error: str | None = Field(description="Why it failed.")
    version: int | None = Field(description="The version that it made.")
    learned: Learned | None

    @classmethod
    def of(cls, job: jobs.Job) -> Job:
        return cls.model_validate(
            {
                **{name: getattr(job, name) for name in cls.model_fields if name not in ("version", "learned")},
                "version": job.version,
                "learned": Learned.of(job.outcome) if job.outcome else None,
            }
        )
