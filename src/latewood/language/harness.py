"""Tasks of the field's evaluation harness (lm-evaluation-harness) as probes: ``pip install 'latewood[eval]'``.

The harness asks a model three things: how likely a continuation is, how likely a whole text is, and how a text goes on.
:func:`harness_model` lets a model of this wing answer, by the conventions of the harness's own models for the Hugging Face
hub; :class:`HarnessTask` is a probe that puts the questions of one task to a learner.

No code is ever downloaded and run: tasks marked as unsafe, and metrics that are fetched from the hub, are refused. What a
task does in Python comes with the installed package lm-eval, or lies in the folder that ``include_path`` names.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.learner import Learner
from latewood.core.probe import Probe
from latewood.core.seeding import seeded
from latewood.language.corpora import Tokenizer, load_tokenizer
from latewood.language.nets.causal import CausalLM
from latewood.parts.pretrained import first_line, quiet

#: What the harness draws its examples with, so that they are those of its own runs.
_FEW_SHOT_SEED = 1234
#: What the harness takes where a model does not say how much it reads, and where a task does not say how much is written.
_CONTEXT, _WRITTEN = 2048, 256


def harness_model(
    model: Learner | CausalLM,
    tokenizer: Tokenizer | str,
    *,
    add_bos_token: bool = False,
    batch_size: int = 16,
) -> Any:
    """A language model, or the learner that trains it, as the ``lm_eval.api.model.TemplateLM`` that the harness evaluates.

    A text of more tokens than the model reads loses its beginning, never what is scored. Texts are continued greedily.
    With ``add_bos_token`` each begins with the token that ends a text (what comes before is over), as the rows of
    :class:`~latewood.language.probes.MultipleChoice` do; the harness does so only where a tokenizer asks for it.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if lm-eval is not installed, there is no causal language
    model, or ``batch_size`` is below 1.

    >>> lm = harness_model(learner, "HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
    >>> lm_eval.simple_evaluate(lm, tasks=["arc_easy", "piqa"])  # doctest: +SKIP
    """
    network = model if isinstance(model, CausalLM) else getattr(model, "backbone", None)
    if not isinstance(network, CausalLM):
        raise ConfigurationError(
            f"The harness asks a causal language model, but {type(model).__name__} is none and has none as its backbone."
        )
    if batch_size < 1:
        raise ConfigurationError(f"The harness's texts come in batches of at least 1, but batch_size is {batch_size}.")
    adapter = type("HarnessModel", (_Adapter, _harness("lm_eval.api.model").TemplateLM), {})
    return adapter(network, load_tokenizer(tokenizer), add_bos_token, batch_size)


class _Adapter:
    """The half of a ``TemplateLM`` that is ours; the other splits texts into contexts and continuations."""

    def __init__(self, network: CausalLM, text_tokenizer: Tokenizer, add_bos_token: bool, batch_size: int) -> None:
        super().__init__()
        self.network, self.text_tokenizer = network, text_tokenizer
        self.add_bos_token, self.batch_size = add_bos_token, batch_size
        config: Any = network.network.config
        self.max_length = int(getattr(config, "max_position_embeddings", None) or _CONTEXT)

    @property
    def eot_token_id(self) -> int:
        return self.text_tokenizer.end

    @property
    def tokenizer_name(self) -> str:
        return self.text_tokenizer.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        begins = self.add_bos_token if add_special_tokens is None else add_special_tokens
        return [self.eot_token_id] * begins + self.text_tokenizer.encode(string)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each text: after the token that ends one, and in windows where it is long."""
        utils = _harness("lm_eval.utils")
        owners: list[int] = []
        windows: list[tuple[Any, list[int], list[int]]] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in utils.get_rolling_token_windows(tokens, self.eot_token_id, self.max_length, context_len=1):
                owners.append(number)
                windows.append((None, *utils.make_disjoint_window(window)))
        totals = [0.0] * len(requests)
        for owner, (likelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += likelihood
        return totals

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        """For each context and continuation: the log-likelihood of the latter, and whether it is what greed would write."""
        self.network.eval()
        rows = [torch.tensor(self._row(context, continuation)) for _, context, continuation in requests]
        counts = [len(continuation) for _, _, continuation in requests]
        found = [(0.0, True)] * len(rows)
        for places in _batches(rows, self.batch_size):
            tokens = pad_sequence([rows[place] for place in places], batch_first=True, padding_value=self.eot_token_id)
            inputs = self.network.prepare(Data(tokens=tokens))
            logits, targets = self.network(inputs[:, :-1]).float(), inputs[:, 1:]
            likely = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1).double().cpu()
            greedy = (logits.argmax(-1) == targets).cpu()
            for row, place in enumerate(places):
                end = len(rows[place]) - 1
                scored = slice(end - counts[place], end)
                found[place] = float(likely[row, scored].sum()), bool(greedy[row, scored].all())
        return found

    def _row(self, context: list[int], continuation: list[int]) -> list[int]:
        if not 1 <= len(continuation) <= self.max_length:
            raise DataError(
                f"A task asks for the likelihood of {len(continuation)} tokens at once, but this model reads "
                f"1 to {self.max_length}."
            )
        # The last token is only predicted, so one more than the model reads finds its place.
        return [*(context or [self.eot_token_id]), *continuation][-(self.max_length + 1) :]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """How each text goes on, up to the first of its stop sequences or the number of tokens that its task allows."""
        found = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(place)
        for places in alike.values():
            wanted = _harness("lm_eval.models.utils").normalize_gen_kwargs(requests[places[0]].args[1], _WRITTEN)
            room = self.max_length - wanted["max_gen_toks"]
            if room < 1:
                raise ConfigurationError(
                    f"A task asks for up to {wanted['max_gen_toks']} new tokens, but this model reads {self.max_length} in all."
                )
            starts = [(self.tok_encode(requests[place].args[0]) or [self.eot_token_id])[-room:] for place in places]
            for batch in _batches(starts, self.batch_size):
                texts = self._written([starts[number] for number in batch], wanted["until"], wanted["max_gen_toks"])
                for number, text in zip(batch, texts, strict=True):
                    found[places[number]] = text
        return found

    @torch.no_grad()
    def _written(self, starts: Sequence[list[int]], until: Sequence[str], most: int) -> list[str]:
        self.network.eval()
        network: Any = self.network.network
        end, decode, stops = self.eot_token_id, self.text_tokenizer.decode, [stop for stop in until if stop]
        width = max(map(len, starts))

        def ended(tokens: Tensor, scores: Any, **_: Any) -> Tensor:
            texts = [decode(row) for row in tokens[:, width:].tolist()]
            return torch.tensor([any(stop in text for stop in stops) for text in texts], device=tokens.device)

        tokens = torch.tensor([[end] * (width - len(start)) + start for start in starts], device=network.device)
        real = torch.tensor([[0] * (width - len(start)) + [1] * len(start) for start in starts], device=network.device)
        written = network.generate(
            tokens,
            attention_mask=real,
            max_new_tokens=most,
            do_sample=False,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=end,
            stopping_criteria=[ended],
        )
        cut = _harness("lm_eval.models.utils").postprocess_generated_text
        return [cut(decode(row), stops, None) for row in written[:, width:].tolist()]


class HarnessTask(Probe):
    """A task of lm-evaluation-harness, such as ``arc_easy``, ``lambada_openai`` or ``mmlu``, with the scores of the harness.

    ``task`` is the name of a task or of a group that has a score of its own; with ``include_path`` one of the task files
    (YAML) in that folder. ``limit`` takes only the first documents (of each task of a group), ``shots`` is the number of
    solved examples before each (None: as the task says). ``tokenizer`` is the model's. For ``add_bos_token`` and
    ``batch_size`` see :func:`harness_model`. Functions that a file in ``include_path`` names are run: name only a folder
    that you trust.

    ``metrics`` are those of the task, under the harness's names; a filter other than ``none`` is part of the name
    (``exact_match,strict-match``). A score that the harness does not give is NaN.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if lm-eval is not installed, the task is unknown, can't be
    loaded, has no score, is marked as unsafe, needs code from the hub, samples, or reads more than text, or if an argument
    does not fit it; :class:`~latewood.core.errors.DataError` from ``score`` for a text that does not fit into the model.

    >>> probe = HarnessTask("science", "arc_easy", "EleutherAI/pythia-70m", limit=200)  # doctest: +SKIP
    >>> probe.score(learner)["acc_norm"]  # doctest: +SKIP
    """

    metrics: Mapping[str, bool]  # type: ignore[misc]  # each task has its own

    def __init__(
        self,
        name: str,
        task: str,
        tokenizer: Tokenizer | str,
        *,
        since: int = 0,
        weight: float = 1.0,
        include_path: str | Path | None = None,
        limit: int | None = None,
        shots: int | None = None,
        add_bos_token: bool = False,
        batch_size: int = 16,
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigurationError(f"Probe {name!r} needs at least 1 document of task {task!r}, but its limit is {limit}.")
        if shots is not None and shots < 0:
            raise ConfigurationError(f"Probe {name!r} can't show {shots} solved examples; right would be 0 or more.")
        if batch_size < 1:
            raise ConfigurationError(f"Probe {name!r} needs a batch_size of at least 1, but it is {batch_size}.")
        self.task, self.limit, self.shots = task, limit, shots
        self.tokenizer, self.add_bos_token, self.batch_size = load_tokenizer(tokenizer), add_bos_token, batch_size
        self._loaded = _loaded(task, include_path, shots)
        self._result, self._scores = _scores(task, self._loaded)
        self.metrics = {_short(key): higher for key, higher in self._scores.items()}
        with _at_work():
            sizes = {found: len(leaf.eval_docs) for found, leaf in self._loaded["tasks"].items()}
        taken = {found: min(size, limit or size) for found, size in sizes.items()}
        data = Data(
            task=[found for found, size in taken.items() for _ in range(size)],
            document=[number for size in taken.values() for number in range(size)],
        )
        super().__init__(name, data, since, weight)

    def score(self, learner: Learner) -> dict[str, float]:
        model = harness_model(learner, self.tokenizer, add_bos_token=self.add_bos_token, batch_size=self.batch_size)
        with _at_work():
            _seed(self._loaded)
            results = _harness("lm_eval.evaluator").evaluate(
                lm=model, task_dict=self._loaded, limit=self.limit, bootstrap_iters=0, log_samples=False
            )
        found = results["results"][self._result]
        return {_short(key): float(found.get(key, math.nan)) for key in self._scores}


def _harness(module: str) -> Any:
    """A module of lm-eval."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"The harness's tasks need the package {error.name}: `pip install 'latewood[eval]'` brings it."
        ) from None


@cache
def _manager(folder: Path | None) -> Any:
    """The tasks that lm-eval knows, or those of a folder. It reads thousands of files, which takes seconds."""
    return _harness("lm_eval.tasks").TaskManager(include_path=folder, include_defaults=folder is None)


def _loaded(task: str, include_path: str | Path | None, shots: int | None) -> dict[str, Any]:
    """The tasks that ``task`` stands for, ready to be asked, and the groups they are in."""
    _harness("lm_eval")
    folder = Path(include_path).expanduser().resolve() if include_path is not None else None
    if folder is not None and not folder.is_dir():
        raise ConfigurationError(f"There is no folder {str(include_path)!r} with tasks of the harness.")
    # A folder is looked at anew: its files may have changed.
    manager = _manager.__wrapped__(folder) if folder else _manager(None)
    _check_known(task, manager.all_tasks, "lm-eval" if folder is None else f"the folder {str(include_path)!r}")
    try:
        with _at_work():
            loaded: dict[str, Any] = manager.load(task)
            for name, leaf in loaded["tasks"].items():
                _check_allowed(name, leaf)
                _set_shots(name, leaf, shots)
            _seed(loaded)
            for leaf in loaded["tasks"].values():
                leaf.build_all_requests(limit=1)
    except ConfigurationError:
        raise
    except Exception as error:  # a task may do anything in Python, or wait for a network that is not there
        raise ConfigurationError(f"The task {task!r} of the harness can't be loaded: {first_line(error)}.") from error
    return loaded


def _check_known(task: str, known: Sequence[str], where: str) -> None:
    if task in known:
        return
    close = difflib.get_close_matches(task, known, n=1)
    some = ", ".join(map(repr, known[:3])) or "none"
    more = f" and {len(known) - 3} more" if len(known) > 3 else ""
    hint = f"did you mean {close[0]!r}?" if close else f"it has {some}{more}."
    raise ConfigurationError(f"There is no task {task!r} in {where}; {hint}")


def _check_allowed(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigurationError(f"The task {name!r} runs code that a model writes, which Latewood never does; choose another.")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigurationError(f"The task {name!r} shows more than text, which a language model can't read; choose another.")
    if task.OUTPUT_TYPE == "generate_until":
        asked = task.get_config("generation_kwargs") or {}
        wanted = _harness("lm_eval.models.utils").normalize_gen_kwargs(asked, _WRITTEN)
        if wanted["do_sample"] or wanted.get("num_beams", 1) != 1:
            raise ConfigurationError(
                f"The task {name!r} samples or searches what a model writes, but texts are continued greedily; choose another."
            )


def _set_shots(name: str, task: Any, shots: int | None) -> None:
    own = task.get_config("num_fewshot")
    if shots and own == 0:
        raise ConfigurationError(f"The task {name!r} is meant to be solved without examples, so shots can't be {shots}.")
    if shots is not None or own is None:
        task.set_config("num_fewshot", shots or 0)


def _seed(loaded: Mapping[str, Any]) -> None:
    """Let the same examples be drawn each time."""
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(_FEW_SHOT_SEED)


def _scores(task: str, loaded: Mapping[str, Any]) -> tuple[str, dict[str, bool]]:
    """Under which name the results of ``task`` stand, and which of its scores get better by rising."""
    leaves, groups = loaded["tasks"], loaded.get("groups") or {}
    if task in groups:
        wanted = groups[task].aggregate_metric_list or []
        directions = [leaf.higher_is_better() for leaf in leaves.values()]
        filters = {metric.metric: metric.filter_list or _filters(leaves.values()) for metric in wanted}
        found = {
            f"{metric},{name}": {rising[metric] for rising in directions if metric in rising}
            for metric, names in filters.items()
            for name in names
        }
        result = task
    elif len(leaves) == 1:
        ((result, leaf),) = leaves.items()
        rising = leaf.higher_is_better()
        found = {f"{metric},{name}": {higher} for metric, higher in rising.items() for name in _filters([leaf])}
    else:
        found = {}
    known = {key: bool(next(iter(ways))) for key, ways in found.items() if len(ways) == 1 and None not in ways}
    if not known:
        parts = f"; it holds {', '.join(map(repr, list(leaves)[:3]))}" if len(leaves) > 1 else ""
        raise ConfigurationError(f"The harness gives no score for {task!r} as a whole{parts}; choose a task that has one.")
    return result, known


def _filters(tasks: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(each.name for task in tasks for each in task._filters))


def _short(key: str) -> str:
    return key.removesuffix(",none")


def _batches(rows: Sequence[Any], size: int) -> Iterator[list[int]]:
    """The places of rows of about the same length, the longest first: where memory does not suffice, it is told at once."""
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@contextmanager
def _at_work() -> Iterator[None]:
    """The harness without progress bars and reports, without a trace in the random generators, and without foreign code."""
    refused: list[str] = []

    def refuse(path: str, *_: Any, **__: Any) -> None:
        refused.append(path)
        raise ImportError(f"{path} would be downloaded and run")

    logger = logging.getLogger("lm_eval")
    level = logger.level
    try:
        with ExitStack() as stack:
            stack.enter_context(seeded("harness"))
            stack.enter_context(quiet())
            stack.enter_context(_replaced("evaluate.loading", "evaluation_module_factory", refuse))
            for module in ("lm_eval.api.task", "lm_eval.api.model"):
                stack.enter_context(_replaced(module, "tqdm", lambda rows, **_: rows))
            logger.setLevel(logging.CRITICAL)
            yield
    except Exception:
        if not refused:
            raise
    finally:
        logger.setLevel(level)
    # The harness itself goes on without a metric that it can't load.
    if refused:
        raise ConfigurationError(
            f"A task needs the metric {refused[0]!r}, code that would be downloaded and run, which Latewood never does; "
            "choose another task."
        )


@contextmanager
def _replaced(module: str, name: str, value: Callable[..., Any]) -> Iterator[None]:
    owner = _harness(module)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
