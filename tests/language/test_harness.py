"""The harness's tasks: scored as our own probes score the same questions; nothing is downloaded, nothing unsafe is run."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.learner import Learner
from latewood.language.corpora import ByteTokenizer, pack
from latewood.language.corpora.tokenizers import PretrainedTokenizer
from latewood.language.harness import HarnessTask, harness_model
from latewood.language.learners.continue_ import Continue
from latewood.language.nets.causal import CausalLM, causal
from latewood.language.probes import HeldOutLoss, MultipleChoice, Question
from latewood.language.recipe import TextRecipe

BYTES = ByteTokenizer()
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Cuba": "Havana", "Norway": "Oslo"}


@pytest.fixture
def harness() -> Any:
    return pytest.importorskip("lm_eval")


def model(context: int = 256, seed: int = 0) -> CausalLM:
    torch.manual_seed(seed)
    return causal(Data(tokens=torch.zeros(1, 2)), layers=1, width=32, heads=2, context=context)


def learner(steps: int = 1, context: int = 256) -> Continue:
    return Continue(model(context), TextRecipe(steps=steps, batch_size=8, lr=1e-2))


def questions() -> list[Question]:
    towns = list(CAPITALS.values())
    return [
        Question(f"The capital of {country} is", [towns[(place + step) % 6] for step in range(4)], 0)
        if place % 2
        else Question(f"The capital of {country} is", [towns[(place + step) % 6] for step in (2, 1, 0, 3)], 2)
        for place, country in enumerate(CAPITALS)
    ]


def asked(*requests: tuple[Any, ...]) -> list[Any]:
    """Requests as the harness hands them over."""
    return [SimpleNamespace(args=request) for request in requests]


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    """The same as the harness's own class has them."""
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, given, 0) for given in arguments]


def task(folder: Path, name: str, documents: Sequence[dict[str, Any]], **settings: Any) -> None:
    """A task file and the documents that it asks about."""
    lines = folder / f"{name}.jsonl"
    lines.write_text("\n".join(json.dumps(document) for document in documents))
    files = {"data_files": {"test": str(lines)}, "cache_dir": str(folder / "cache")}
    config = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **settings}
    (folder / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML


def mean(metric: str, higher: bool = True, aggregation: str = "mean") -> dict[str, Any]:
    return {"metric": metric, "aggregation": aggregation, "higher_is_better": higher}


CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [mean("acc"), mean("acc_norm")],
}
WRITING: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{options[answer]}}",
    "target_delimiter": " ",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [mean("exact_match")],
    "filter_list": [
        {"name": "strict", "filter": [{"function": "take_first"}]},
        {"name": "word", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}]},
    ],
}


def choice(folder: Path, name: str = "capitals", **settings: Any) -> None:
    task(folder, name, [question._asdict() for question in questions()], **{**CHOICE, **settings})


# What the harness's own probes and ours agree on


def test_accuracy_equals_that_of_our_own_questions_before_and_after_learning(harness: Any, tmp_path: Path) -> None:
    choice(tmp_path)
    theirs = HarnessTask("capitals", "capitals", BYTES, include_path=tmp_path, add_bos_token=True, batch_size=5)
    ours = MultipleChoice.from_questions("capitals", questions(), BYTES)
    assert dict(theirs.metrics) == {"acc": True, "acc_norm": True}
    assert len(theirs.data) == 6 and theirs.data["task"] == ["capitals"] * 6
    pupil = learner(steps=120)
    before = ours.score(pupil)
    assert theirs.score(pupil) == before and before["acc"] < 1
    facts = [f"The capital of {country} is {town}" for country, town in CAPITALS.items()]
    pupil.learn(Experience(0, pack(facts * 16, length=64)))
    after = ours.score(pupil)
    assert theirs.score(pupil) == after and after["acc"] > before["acc"]
    assert theirs.score(pupil) == after  # asking twice changes nothing


@pytest.mark.parametrize("begun", [True, False])
def test_a_continuation_is_as_likely_as_our_own_probes_hold_it(harness: Any, begun: bool) -> None:
    """Without the token in front, as the harness asks its own models, it is the same row without its first column."""
    pupil = learner()
    lm = harness_model(pupil, BYTES, add_bos_token=begun, batch_size=4)
    data = MultipleChoice.from_questions("q", questions(), BYTES).data
    cut = Data(tokens=data.tensor("tokens")[:, 1:], targets=data.tensor("targets")[:, 1:])
    expected = pupil.predict(data if begun else cut)
    found = lm.loglikelihood(asked(*[(q.question, f" {option}") for q in questions() for option in q.options]))
    torch.testing.assert_close(torch.tensor([-nats for nats, _ in found], dtype=torch.float64), expected)


def test_the_perplexity_of_a_text_equals_that_of_held_out_text(harness: Any, tmp_path: Path) -> None:
    text = "It is a truth universally acknowledged, that a single man must be in want of a wife."
    metrics = [mean("byte_perplexity", False, "weighted_perplexity"), mean("bits_per_byte", False, "bits_per_byte")]
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}", "metric_list": metrics}
    task(tmp_path, "novel", [{"text": text}], **rolling)
    probe = HarnessTask("novel", "novel", BYTES, include_path=tmp_path)
    row = torch.tensor([[BYTES.end, *BYTES.encode(text)]])
    pupil = learner()
    ours = HeldOutLoss("novel", Data(tokens=row, bytes=torch.tensor([len(text)])), since=0).score(pupil)
    theirs = probe.score(pupil)
    assert dict(probe.metrics) == {"byte_perplexity": False, "bits_per_byte": False}
    assert theirs["byte_perplexity"] == pytest.approx(ours["perplexity"], rel=1e-6)
    assert theirs["bits_per_byte"] == pytest.approx(ours["loss"] / math.log(2), rel=1e-6)  # each token is a byte


# The model that answers


def test_a_text_longer_than_the_model_is_read_in_windows_that_score_each_token_once(harness: Any) -> None:
    net = model(context=16)
    text = "abcdefghijklmnopqrstuvwxyz0123456789ABCD"  # 40 tokens: 16, 16 and 8
    row = [BYTES.end, *BYTES.encode(text)]
    expected = 0.0
    for first, start, stop in [(0, 1, 17), (16, 17, 33), (24, 33, 41)]:
        window = torch.tensor([row[first:stop]])
        losses = torch.nn.functional.cross_entropy(net(window[:, :-1])[0].double(), window[0, 1:], reduction="none")
        expected -= float(losses[-(stop - start) :].sum().detach())
    (found,) = harness_model(net, BYTES).loglikelihood_rolling(asked((text,)))
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_context_that_is_too_long_loses_its_beginning(harness: Any) -> None:
    lm = harness_model(model(context=16), BYTES)
    both = lm.loglikelihood(asked(("x" * 50 + "the end of it", " yes"), ("the end of it", " yes")))  # 13 + 4 = 16 + 1
    assert both[0] == both[1]
    with pytest.raises(DataError, match="the likelihood of 17 tokens at once, but this model reads 1 to 16"):
        lm.loglikelihood(asked(("a", "b" * 17)))


def test_what_greed_writes_is_told_and_is_what_is_written(harness: Any) -> None:
    net = model()
    lm = harness_model(net, BYTES, batch_size=2)
    contexts = ["Snow is", "Coal", "A longer context than both"]
    row = [BYTES.encode(context) for context in contexts]
    for tokens in row:
        for _ in range(6):
            tokens.append(int(net(torch.tensor([tokens]))[0, -1].argmax()))
    written = [BYTES.decode(tokens[-6:]) for tokens in row]
    assert lm.generate_until(asked(*[(context, {"until": [], "max_gen_toks": 6}) for context in contexts])) == written
    tokens = [(("", ""), tokens[:-6], tokens[-6:]) for tokens in row]
    assert all(greedy for _, greedy in lm._loglikelihood_tokens(tokens))
    other = [(pair, start, [*rest[:-1], (rest[-1] + 1) % 256]) for pair, start, rest in tokens]
    assert not any(greedy for _, greedy in lm._loglikelihood_tokens(other))


class Parrot(torch.nn.Module):
    """A network that writes a fixed text, and counts how far it came."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.written, self.seen = text.encode(), 0, 0
        self.config = SimpleNamespace(hidden_size=1, vocab_size=257, use_cache=False, max_position_embeddings=32)
        self.device = torch.device("cpu")

    def generate(self, tokens: Tensor, *, max_new_tokens: int, stopping_criteria: Any, **_: Any) -> Tensor:
        self.seen = tokens.shape[1]
        for value in self.text[:max_new_tokens]:
            tokens = torch.cat([tokens, torch.full((len(tokens), 1), value)], 1)
            self.written += 1
            if bool(stopping_criteria[0](tokens, None).all()):
                break
        return tokens


def test_it_answers_as_the_harness_s_own_model_for_the_hub_does(harness: Any) -> None:
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
    vocabulary = {token: place for place, token in enumerate([*alphabet, *map("".join, pairs), "<end>"])}
    backend = Tokenizer(models.BPE(vocabulary, pairs))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    torch.manual_seed(0)
    net = causal(Data(tokens=torch.zeros(1, 2)), layers=2, width=32, heads=2, context=24, vocabulary=len(vocabulary))
    theirs = HFLM(pretrained=net.network, tokenizer=fast, batch_size=3, device="cpu")
    text = "Over the river, and through the wood, to the house we go; the horse knows the way."
    pieces = [("", " the river"), ("Over the", " river"), ("the house ", "we go"), (text, " the sleigh"), ("é", "à the")]
    written = [(start, {"until": [" t"], "max_gen_toks": 9, "do_sample": False}) for start, _ in pieces[1:]]
    ours = harness_model(net, PretrainedTokenizer("fast", backend, vocabulary["<end>"]), batch_size=2)
    for mine, own in zip(ours.loglikelihood(asked(*pieces)), theirs.loglikelihood(requests(*pieces)), strict=True):
        assert mine == (pytest.approx(own[0], rel=1e-5), own[1])
    long = [(text,), ("the",)]
    assert ours.loglikelihood_rolling(asked(*long)) == pytest.approx(theirs.loglikelihood_rolling(requests(*long)), rel=1e-5)
    assert ours.generate_until(asked(*written)) == theirs.generate_until(requests(*written))


def test_writing_ends_at_a_stop_sequence_or_at_the_number_of_tokens_asked_for(harness: Any) -> None:
    network = Parrot("Oslo\nQuestion: and so on")
    lm = harness_model(CausalLM(network, {}), BYTES)
    assert lm.generate_until(asked(("a", {"until": ["Q", "\n"], "max_gen_toks": 20}))) == ["Oslo"]
    assert network.written == len("Oslo\n")  # no token more
    assert lm.generate_until(asked(("a" * 99, {"until": "!", "max_new_tokens": 7}))) == ["Oslo\nQu"]
    assert network.seen == 32 - 7  # what is written needs its place
    with pytest.raises(ConfigurationError, match="up to 256 new tokens, but this model reads 32 in all"):
        lm.generate_until(asked(("a", {"until": []})))


def test_only_a_causal_language_model_answers(harness: Any) -> None:
    class Other(Learner):
        def learn(self, experience: Experience) -> None: ...

        def predict(self, data: Data) -> Tensor:
            return torch.zeros(len(data))

    with pytest.raises(ConfigurationError, match="Other is none and has none as its backbone"):
        harness_model(Other(), BYTES)


# The probe


def test_each_filter_of_a_written_answer_is_a_metric(harness: Any, tmp_path: Path) -> None:
    task(tmp_path, "writing", [question._asdict() for question in questions()], **WRITING)
    probe = HarnessTask("w", "writing", BYTES, include_path=tmp_path, limit=2)
    assert dict(probe.metrics) == {"exact_match,strict": True, "exact_match,word": True} and len(probe.data) == 2
    right = questions()[0].options[questions()[0].answer]
    pupil = learner()
    pupil.backbone = CausalLM(Parrot(f" {right}\n"), {})
    assert probe.score(pupil) == {"exact_match,strict": 0.0, "exact_match,word": 0.5}


def test_examples_stand_before_each_question_and_are_the_same_each_time(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice(tmp_path)
    probe = HarnessTask("capitals", "capitals", BYTES, include_path=tmp_path, shots=2, limit=3)
    seen: list[list[str]] = []
    monkeypatch.setattr(
        "lm_eval.api.model.TemplateLM.loglikelihood",
        lambda self, requests, **_: seen.append([r.args[0] for r in requests]) or [(-1.0, False) for _ in requests],
    )
    probe.score(learner())
    probe.score(learner())
    assert seen[0] == seen[1] and len(seen[0]) == 3 * 4
    assert {context.count("The capital of") for context in seen[0]} == {3}


def test_a_group_is_scored_as_it_says_and_one_without_a_score_is_refused(harness: Any, tmp_path: Path) -> None:
    half = [question._asdict() for question in questions()]
    task(tmp_path, "first", half[:2], **{**CHOICE, "tag": "towns"})
    task(tmp_path, "rest", half[2:], **{**CHOICE, "tag": "towns"})
    aggregate = [{"metric": "acc", "weight_by_size": True}]
    (tmp_path / "both.yaml").write_text(
        json.dumps({"group": "both", "task": ["first", "rest"], "aggregate_metric_list": aggregate})
    )
    (tmp_path / "loose.yaml").write_text(json.dumps({"group": "loose", "task": ["first", "rest"]}))
    choice(tmp_path)
    pupil = learner()
    probe = HarnessTask("both", "both", BYTES, include_path=tmp_path)
    whole = HarnessTask("whole", "capitals", BYTES, include_path=tmp_path)
    assert dict(probe.metrics) == {"acc": True} and len(probe.data) == 6
    assert probe.score(pupil)["acc"] == pytest.approx(whole.score(pupil)["acc"])
    for name in ("loose", "towns"):
        with pytest.raises(ConfigurationError, match=f"gives no score for '{name}' as a whole; it holds 'first', 'rest'"):
            HarnessTask("x", name, BYTES, include_path=tmp_path)


def test_scoring_leaves_the_weights_and_the_random_generators_as_they_were(harness: Any, tmp_path: Path) -> None:
    choice(tmp_path)
    probe = HarnessTask("capitals", "capitals", BYTES, include_path=tmp_path, shots=1)
    pupil = learner()
    before = {name: value.clone() for name, value in pupil.state_dict().items()}
    states = random.getstate(), torch.get_rng_state()
    probe.score(pupil)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert all(torch.equal(value, before[name]) for name, value in pupil.state_dict().items())


def test_a_context_of_nothing_but_space_is_none(harness: Any) -> None:
    first, second = harness_model(model(), BYTES).loglikelihood(asked(("  ", "yes"), ("", "  yes")))
    assert first == second


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unsafe_code": True}, "runs code that a model writes"),
        ({"metric_list": [mean("an/metric-of-the-hub")]}, "needs the metric 'an/metric-of-the-hub', code that would be"),
        ({"metric_list": [{**mean("accuracy"), "hf_evaluate": True}]}, "needs the metric 'accuracy', code that would be"),
        ({"test_split": "nowhere"}, "The task 'capitals' of the harness can't be loaded: .*nowhere"),
        ({**WRITING, "generation_kwargs": {"until": [], "do_sample": True, "temperature": 1.0}}, "samples or searches"),
        ({"num_fewshot": 0}, "meant to be solved without examples, so shots can't be 9"),
        ({}, "can't be loaded: Sample larger than population"),
    ],
)
def test_a_task_that_can_not_be_asked_is_told(harness: Any, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    choice(tmp_path, **settings)
    with pytest.raises(ConfigurationError, match=message):
        HarnessTask("x", "capitals", BYTES, include_path=tmp_path, shots=9)


def test_a_metric_from_the_hub_that_is_asked_for_while_scoring_is_not_run(harness: Any, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "def results(doc, results):\n    import evaluate\n    return {'acc': evaluate.load('accuracy').compute()}\n"
    )
    choice(tmp_path, process_results="PLACE")
    file = tmp_path / "capitals.yaml"
    file.write_text(file.read_text().replace('"PLACE"', "!function late.results"))
    probe = HarnessTask("x", "capitals", BYTES, include_path=tmp_path)
    with pytest.raises(ConfigurationError, match="needs the metric 'accuracy', code that would be downloaded"):
        probe.score(learner())


@pytest.mark.parametrize(
    ("task_name", "arguments", "message"),
    [
        ("capitols", {}, "There is no task 'capitols' in the folder .*; did you mean 'capitals'"),
        ("zzz", {}, "There is no task 'zzz' in the folder .*; it has 'capitals'"),
        ("capitals", {"limit": 0}, "at least 1 document of task 'capitals', but its limit is 0"),
        ("capitals", {"shots": -1}, "can't show -1 solved examples"),
        ("capitals", {"batch_size": 0}, "a batch_size of at least 1, but it is 0"),
        ("capitals", {"include_path": "nowhere"}, "There is no folder 'nowhere'"),
        ("capitals", {"tokenizer": "./nowhere"}, "There is no folder './nowhere'"),
        ("capitals", {"since": -1}, "seen from experience -1 on"),
    ],
)
def test_an_argument_that_does_not_fit_is_told(
    harness: Any, tmp_path: Path, task_name: str, arguments: dict[str, Any], message: str
) -> None:
    choice(tmp_path)
    with pytest.raises((ConfigurationError, DataError), match=message):
        HarnessTask("x", task_name, **{"tokenizer": BYTES, "include_path": tmp_path, **arguments})


@pytest.mark.parametrize("what", [lambda: HarnessTask("x", "arc_easy", BYTES), lambda: harness_model(model(), BYTES)])
def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, what: Any) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for module in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ConfigurationError, match=r"need the package lm_eval.*: `pip install 'latewood\[eval\]'`"):
        what()


def test_importing_it_imports_nothing_of_the_harness() -> None:
    code = "import sys, latewood.language.harness; sys.exit(any(m in sys.modules for m in ('lm_eval', 'evaluate')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
