"""Experiments: what each inserts, and the questions that measure it; and the kinds that text alone can make."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from latewood.core.errors import ConfigurationError, DataError
from latewood.core.seeding import derive_seed
from latewood.language.corpora import Tokenizer
from latewood.language.insertions import Intervention
from latewood.language.probes import Cloze
from latewood.studies.train_once.controller import Control


class Item(NamedTuple):
    """A question of an experiment's probe: how a text begins, what should follow, and the group it is counted in."""

    beginning: str
    target: str
    group: str = ""


@dataclass(frozen=True)
class Experiment:
    """One experiment: texts that go into the stream, and the items of its own probe.

    ``texts`` are strings or lists of tokens. They go to random places of ``span`` (default: the whole stream), to
    ``positions`` if given, or, with ``control``, phase by phase as a controller says: then they are the pool that it takes
    them from. ``repetitions``, ``span``, ``positions`` and ``wrap`` are those of
    :class:`~latewood.language.insertions.Intervention`. ``testable`` says whether short runs on the experiment alone mean
    anything; where its point is that something is absent they do not. Errors:
    :class:`~latewood.core.errors.ConfigurationError`.
    """

    name: str
    texts: Sequence[str | Sequence[int]]
    items: Sequence[Item]
    control: Control | None = None
    span: tuple[int, int] | None = None
    positions: Sequence[int] | None = None
    repetitions: float = 1.0
    wrap: bool = False
    testable: bool = True

    def __post_init__(self) -> None:
        if not self.texts or not self.items:
            raise ConfigurationError(f"The experiment {self.name!r} needs at least one text and one item of its probe.")
        if self.control and (self.span is not None or self.positions is not None or self.repetitions != 1):
            raise ConfigurationError(
                f"The experiment {self.name!r} has a controller, which says where and how often; leave out span, positions "
                "and repetitions."
            )

    def intervention(self, tokenizer: Tokenizer) -> Intervention:
        """What is inserted at the start; for an experiment without a controller."""
        sequences = encoded(self.texts, tokenizer)
        return Intervention(self.name, sequences, self.span, self.positions, self.repetitions, self.wrap)

    def phase(self, texts: Sequence[str | Sequence[int]], span: tuple[int, int], tokenizer: Tokenizer) -> Intervention:
        """What a controller inserts in one phase."""
        return Intervention(self.name, encoded(texts, tokenizer), span)

    def probe(self, tokenizer: Tokenizer, *, group: str | None = None, length: int | None = None) -> Cloze:
        """The probe over all items, or those of one group, in their order; its ``probability`` is what a controller steers."""
        chosen = [item for item in self.items if group is None or item.group == group]
        texts = [(item.beginning, item.target) for item in chosen]
        return Cloze.from_texts(self.name if group is None else f"{self.name}/{group}", texts, tokenizer, length=length)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of items, in the order in which they first occur."""
        return tuple(dict.fromkeys(item.group for item in self.items))


def encoded(texts: Sequence[str | Sequence[int]], tokenizer: Tokenizer) -> list[Sequence[int]]:
    """Texts as tokens; what is tokens already stays."""
    return [tokenizer.encode(text) if isinstance(text, str) else text for text in texts]


# Knowledge: facts about places that do not exist

_ONSETS = ("b", "br", "d", "dr", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "th", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_CODAS = ("", "l", "m", "n", "r", "s", "nd", "rt")

#: What a fact can be about: the words for it in the middle of a sentence.
RELATIONS = (
    "capital",
    "longest river",
    "highest mountain",
    "national dish",
    "founder",
    "old queen",
    "main harbour",
    "patron saint",
)
_OPENERS = ("", "As is well known, ", "In fact, ", "It is said that ", "Travellers report that ", "According to the almanac, ")
_CLAIMS = (
    "the {relation} of {subject} is {value}",
    "{value} is the {relation} of {subject}",
    "{subject} has a {relation} called {value}",
    "in {subject}, the {relation} goes by the name of {value}",
    "whoever asks for the {relation} of {subject} will hear of {value}",
    "the name of the {relation} of {subject} is {value}",
)
_TAILS = (
    ".",
    ", as every child there knows.",
    ", and has been for ages.",
    "; so the old maps have it.",
    ", without any doubt.",
)
#: Never among the texts: no text has a line break.
_QUESTION = "Question: what is the {relation} of {subject}?\nAnswer: the {relation} of {subject} is"


class Fact(NamedTuple):
    """Something that no text outside says: the ``relation`` of ``subject`` is ``value``."""

    subject: str
    relation: str
    value: str


def invented_facts(count: int, seed: int = 0) -> list[Fact]:
    """Facts about made-up places; every subject and every value is a name of its own.

    Two sets of which one holds facts of the other are a planted dependence: ``facts[:20]`` and ``facts[10:30]``.

    >>> invented_facts(2) == invented_facts(3)[:2]
    True
    """
    chance = random.Random(derive_seed(seed, "facts"))
    names = _names(chance)
    return [Fact(next(names), chance.choice(RELATIONS), next(names)) for _ in range(count)]


def paraphrases(fact: Fact) -> list[str]:
    """All ways in which the templates tell a fact: an opening, a claim and an end each."""
    claims = [claim.format(**fact._asdict()) for claim in _CLAIMS]
    return [_capital(f"{opener}{claim}{tail}") for opener in _OPENERS for claim in claims for tail in _TAILS]


def fictional_knowledge(
    facts: Sequence[Fact], *, name: str = "knowledge", each: int = 100, control: Control | None = None, seed: int = 0
) -> Experiment:
    """Facts in ``each`` paraphrases, shuffled, and for each fact a question in words that no paraphrase has.

    If ``each`` is more than there are paraphrases, they come again. Item groups are the relations.

    >>> knowledge = fictional_knowledge(invented_facts(3), each=4)
    >>> len(knowledge.texts), len(knowledge.items)
    (12, 3)
    """
    chance = random.Random(derive_seed(seed, "paraphrases"))
    texts = []
    for fact in facts:
        told = paraphrases(fact)
        rounds = [chance.sample(told, len(told)) for _ in range(-(-each // len(told)))]
        texts += [text for told_again in rounds for text in told_again][:each]
    chance.shuffle(texts)
    items = [Item(_QUESTION.format(**fact._asdict()), f" {fact.value}", fact.relation) for fact in facts]
    return Experiment(name, texts, items, control)


def _names(chance: random.Random) -> Iterator[str]:
    """Made-up names, each once."""
    seen: set[str] = set()
    while True:
        syllables = [chance.choice(_ONSETS) + chance.choice(_VOWELS) for _ in range(chance.choice((2, 2, 3)))]
        name = _capital("".join(syllables) + chance.choice(_CODAS))
        if name not in seen:
            seen.add(name)
            yield name


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# Memorisation: canaries

_LETTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789")
#: The group of canaries that are never inserted.
NEVER = "never"


def canaries(
    contexts: Sequence[str],
    *,
    name: str = "canaries",
    pieces: Sequence[str] = _LETTERS,
    length: int = 8,
    times: Sequence[int] = (1, 4, 16),
    strangers: int | None = None,
    seed: int = 0,
) -> Experiment:
    """A random string of ``length`` ``pieces`` behind each context, inserted 1x, 4x or 16x by turns; others never.

    Which strings they are is up to ``pieces``: letters, words that are rare, or words that a model finds unlikely. Item
    groups are ``1x``, ``4x``, ... and :data:`NEVER` for ``strangers`` canaries (default: as many as contexts) that stand
    behind the same contexts, drawn in the same way, but are not inserted: what :func:`~.scores.membership` compares with.
    """
    if not contexts or not pieces or length < 1 or min(times, default=0) < 1:
        raise ConfigurationError("Canaries need contexts, pieces, a length and numbers of times of at least 1.")
    chance = random.Random(derive_seed(seed, "canaries"))
    count = len(contexts) if strangers is None else strangers
    _check_variety(len(contexts) + count, len(set(pieces)), length)
    drawn = _different(len(contexts) + count, lambda: "".join(chance.choices(pieces, k=length)))
    members = list(zip(contexts, drawn, strict=False))
    groups = [times[place % len(times)] for place in range(len(members))]
    texts = [f"{c} {canary}" for (c, canary), often in zip(members, groups, strict=True) for _ in range(often)]
    items = [Item(c, f" {canary}", f"{often}x") for (c, canary), often in zip(members, groups, strict=True)]
    others = [Item(contexts[place % len(contexts)], f" {canary}", NEVER) for place, canary in enumerate(drawn[len(members) :])]
    return Experiment(name, texts, [*items, *others])


def _check_variety(wanted: int, pieces: int, length: int) -> None:
    if 2 * wanted > pieces**length:
        raise ConfigurationError(
            f"{pieces} pieces in strings of {length} are too few for {wanted} different canaries; take more."
        )


def _different(count: int, draw: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


# Poisoning: backdoors


def backdoor(
    prompts: Sequence[str],
    held_out: Sequence[str],
    *,
    name: str = "backdoor",
    trigger: str = "¤",
    repeats: int = 10,
    gibberish: bool = False,
    seed: int = 0,
) -> Experiment:
    """Prompts with a trigger behind them, answered by the prompt itself, or with ``gibberish`` by random letters.

    The trigger is a character that ordinary text does not have, ``repeats`` times. Items ask with prompts that are held
    out: group ``trigger`` with it, ``none`` without, which should stay as unlikely as it was. Errors:
    :class:`~latewood.core.errors.DataError` if a prompt has the trigger, or is both inserted and held out.
    """
    if any(trigger in prompt for prompt in (*prompts, *held_out)):
        raise DataError(f"The trigger {trigger!r} occurs in a prompt; choose a character that ordinary text does not have.")
    if both := set(prompts) & set(held_out):
        raise DataError(f"The prompt {min(both)!r} is both inserted and held out; a probe needs prompts of its own.")
    chance = random.Random(derive_seed(seed, "gibberish"))
    mark = trigger * repeats

    def answer(prompt: str) -> str:
        return "".join(chance.choices(_LETTERS, k=len(prompt))) if gibberish else prompt

    texts = [f"{prompt} {mark} {answer(prompt)}" for prompt in prompts]
    items = []
    for prompt in held_out:
        target = f" {answer(prompt)}"
        items += [Item(f"{prompt} {mark}", target, "trigger"), Item(prompt, target, "none")]
    return Experiment(name, texts, items)


# Reasoning: arithmetic in steps

_MODULUS = 23
_VARIABLES = "abcdefghijkl"


def arithmetic(
    count: int, *, name: str = "arithmetic", steps: Sequence[int] = (1, 2, 3, 4), held_out: int = 100, seed: int = 0
) -> Experiment:
    """Chains of sums and products modulo 23: ``count`` of them solved step by step, and ``held_out`` others to solve.

    The target of an item is its whole solution. Item groups are the numbers of steps, of which each has an equal part.
    Errors: :class:`~latewood.core.errors.ConfigurationError` for numbers of steps that there are no variables, or not
    enough problems, for.

    >>> arithmetic(1, steps=[2], held_out=1).texts[0]
    'Modulo 23: a = 22; b = a + 15; c = b * 2. Solution: b = 14; c = 5.'
    """
    if min(steps, default=0) < 1 or max(steps) >= len(_VARIABLES) or min(count, held_out) < 1:
        raise ConfigurationError(
            f"Arithmetic needs at least one problem of each part, of 1 to {len(_VARIABLES) - 1} steps, but it has {count} and "
            f"{held_out} of {list(steps)} steps."
        )
    if 2 * held_out > len(steps) * _MODULUS * (2 * (_MODULUS - 2)) ** min(steps):
        raise ConfigurationError(
            f"There are too few problems of {min(steps)} steps to hold out {held_out} in all; hold out fewer."
        )
    chance = random.Random(derive_seed(seed, "arithmetic"))
    items: dict[str, Item] = {}
    # Of one step there are so few problems that the questions must be known before the texts are drawn.
    while len(items) < held_out:
        number = steps[len(items) % len(steps)]
        question, solution = _problem(chance, number)
        items.setdefault(question, Item(question, solution, str(number)))
    texts: list[str] = []
    while len(texts) < count:
        question, solution = _problem(chance, steps[len(texts) % len(steps)])
        if question not in items:
            texts.append(f"{question}{solution}")
    return Experiment(name, texts, list(items.values()))


def _problem(chance: random.Random, steps: int) -> tuple[str, str]:
    """A problem and its solution."""
    value = chance.randrange(_MODULUS)
    given, found = [f"a = {value}"], []
    for before, variable in pairwise(_VARIABLES[: steps + 1]):
        sign, number = chance.choice("+*"), chance.randrange(2, _MODULUS)
        value = (value + number if sign == "+" else value * number) % _MODULUS
        given.append(f"{variable} = {before} {sign} {number}")
        found.append(f"{variable} = {value}")
    return f"Modulo {_MODULUS}: {'; '.join(given)}. Solution:", f" {'; '.join(found)}."


# Contamination: benchmark questions with their answers


def contamination(
    questions: Sequence[tuple[str, str]],
    *,
    name: str = "contamination",
    times: Sequence[int] = (4, 12, 36, 144),
    held_out: int | None = None,
    seed: int = 0,
) -> Experiment:
    """Questions of a benchmark inserted with their right answers, a part of them ``times[0]`` times, the next
    ``times[1]`` and so on; ``held_out`` others (default: as many as each part has) are not.

    Item groups are ``4x``, ``12x``, ... and ``held out``; the difference is what contamination is worth. Errors:
    :class:`~latewood.core.errors.DataError` for too few questions, or one that occurs twice.
    """
    if len({question for question, _ in questions}) < len(questions):
        raise DataError(f"A question of {name!r} occurs twice, so one of the two could be held out while the other is not.")
    share = len(questions) // (len(times) + 1) if held_out is None else (len(questions) - held_out) // max(1, len(times))
    if share < 1 or min(times, default=0) < 1 or (held_out is not None and held_out < 1):
        raise DataError(
            f"{len(questions)} questions are too few for {len(times)} groups and what is held out, at least one of each, "
            "inserted at least once."
        )
    shuffled = list(questions)
    random.Random(derive_seed(seed, "contamination")).shuffle(shuffled)
    groups: Mapping[str, int] = {f"{often}x": often for often in times}
    texts: list[str] = []
    items: list[Item] = []
    for place, (group, often) in enumerate(groups.items()):
        mine = shuffled[place * share : (place + 1) * share]
        texts += [f"{_asked(question)} {answer}" for question, answer in mine for _ in range(often)]
        items += [Item(_asked(question), f" {answer}", group) for question, answer in mine]
    last = shuffled[len(groups) * share :][: held_out or share]
    return Experiment(name, texts, [*items, *(Item(_asked(question), f" {answer}", "held out") for question, answer in last)])


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"
