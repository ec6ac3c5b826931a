"""A run that is killed at any moment and started again ends with the record and the weights of one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, GradientLearner, Learner, Probe, Recipe, Record, Stream, run
from latewood.core.checkpoint import Checkpoints
from latewood.core.errors import CheckpointError, ConfigurationError, LatewoodError, StorageError
from latewood.core.progress import Progress
from latewood.core.run import describe_difference, discard

# What runs in the processes that are killed: everything that could make a resumed run differ is in it. Dropout and batch
# normalisation, a memory that is filled at random and grows, a schedule, momentum, a probe of each experience.
PROGRAM = '''
import hashlib, json, os, signal, sys
import torch
from torch import nn
from torch.nn import functional as F
from latewood import Data, Experience, GradientLearner, Probe, Recipe, Stream, concat, run
from latewood.core.progress import Progress

torch.set_num_threads(1)


class Rehearsal(GradientLearner):
    def __init__(self, slots=40, ballast=0, recipe=Recipe()):
        super().__init__(recipe)
        torch.manual_seed(5)
        self.slots, self.ballast = slots, ballast
        self.net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
        self.register_buffer("kept_x", torch.zeros(slots, 8))
        self.register_buffer("kept_y", torch.zeros(slots, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("weight_of_saving", torch.zeros(ballast))

    def loss(self, batch):
        held = min(int(self.seen), self.slots)
        if held:
            rows = torch.randperm(held, generator=self.generator)[:16]
            batch = concat(batch, Data(x=self.kept_x[rows], label=self.kept_y[rows]))
        return F.cross_entropy(self.net(batch.tensor("x") + 0.1 * torch.randn(len(batch), 8)), batch.tensor("label"))

    def after_batch(self, batch):
        for x, y in zip(batch.tensor("x"), batch.tensor("label")):
            self.seen += 1
            slot = int(torch.randint(int(self.seen), (), generator=self.generator))
            slot = int(self.seen) - 1 if self.seen <= self.slots else slot
            if slot < self.slots:
                self.kept_x[slot], self.kept_y[slot] = x, y

    def predict(self, data):
        return self.net(data.tensor("x")).argmax(1)


class Accuracy(Probe):
    metrics = {"accuracy": True}

    def score(self, learner):
        for _ in range(3):
            predicted = learner.predict(self.data)
        return {"accuracy": float((predicted == self.data.tensor("label")).float().mean())}


def arrivals(count, rows):
    made = []
    for index in range(count):
        source = torch.Generator().manual_seed(index)
        x = torch.randn(rows, 8, generator=source)
        made.append(Data(x=x, label=(x[:, index % 8] > 0).long() + 2 * (x[:, 7 - index % 8] > 0).long()))
    return made


def main(folder, out, count, rows, ballast, seed=0, transfer=True, progress=None):
    data = arrivals(count, rows)
    probes = [Accuracy(f"part {i}", part[: rows // 2], i) for i, part in enumerate(data)]
    stream = Stream("parts", count, lambda i: Experience(i, data[i]), probes, config={"count": count, "rows": rows})
    learner = Rehearsal(ballast=ballast, recipe=Recipe(epochs=2, batch_size=20, lr=0.05, schedule="cosine", clip=5.0))
    record = run(learner, stream, to=folder, seed=seed, device="cpu", transfer=transfer, progress=progress or Progress())
    digest = hashlib.blake2b()
    for name, value in learner.state_dict().items():
        digest.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    answer = {"record": record.repeatable(), "weights": digest.hexdigest(), "training": learner.training}
    with open(out, "w") as file:
        json.dump(answer, file, sort_keys=True)


class Suicidal(Progress):
    """Ends its own process, by the signal that nobody can catch, at the n-th thing that a run tells it."""

    def __init__(self, events, fatal, nth):
        self.events, self.fatal, self.left = events, fatal, nth

    def event(self, name):
        self.events.append(name)
        self.left -= name == self.fatal
        if self.left == 0 and name == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def phase(self, text, steps=0):
        self.event("phase")

    def step(self, loss=None):
        self.event("probe" if loss is None else "batch")

    def experience_done(self):
        self.event("saved")


def fatal_call(name, nth):
    """Make the n-th call of a function of the system the last thing this process does."""
    import shutil
    from pathlib import Path
    from latewood.core import checkpoint
    owner = {"fsync": os, "replace": Path, "mkdir": Path, "save_file": checkpoint, "rmtree": shutil}[name]
    original, count = getattr(owner, name), [0]

    def call(*args, **kwargs):
        count[0] += 1
        if count[0] == nth:
            if name == "save_file":
                open(args[1], "wb").write(b"half")
            os._exit(9)
        return original(*args, **kwargs)

    setattr(owner, name, call)


def child(order):
    at = order.pop("die", None)
    progress = None
    if at and at[0] in ("phase", "batch", "probe", "saved"):
        progress = Suicidal([], *at)
    elif at:
        fatal_call(*at)
    main(progress=progress, **order)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(**json.loads(sys.argv[1]))
        sys.exit()
    main(None, os.devnull, 1, 40, 0)  # what is imported late is imported once
    print("ready", flush=True)
    for line in sys.stdin:  # one process for each order; forked, so that torch is imported once
        pid = os.fork()
        if pid == 0:
            try:
                child(json.loads(line))
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''


class Life(NamedTuple):
    """One process that works on a run."""

    pid: int
    end: Callable[[], int]


class Processes:
    """Starts the program over and over, each time as a process of its own."""

    def __init__(self, program: Path) -> None:
        self.program = program
        environment = {**os.environ, "LATEWOOD_CACHE": "off", "CUDA_VISIBLE_DEVICES": ""}
        pipe = subprocess.PIPE
        self._nursery = subprocess.Popen([sys.executable, program], stdin=pipe, stdout=pipe, text=True, env=environment)
        assert self._read() == "ready"

    def start(self, order: Mapping[str, Any]) -> Life:
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(json.dumps(order) + "\n")
        self._nursery.stdin.flush()
        return Life(int(self._read()), lambda: int(self._read()))

    def live(self, order: Mapping[str, Any]) -> int:
        """Start a process and wait for its end: 0 if it finished, else what ended it."""
        return self.start(order).end()

    def close(self) -> None:
        self._nursery.kill()
        self._nursery.wait(timeout=30)

    def _read(self) -> str:
        assert self._nursery.stdout is not None
        return self._nursery.stdout.readline().strip()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    program = tmp_path_factory.mktemp("program") / "program.py"
    program.write_text(PROGRAM)
    made = Processes(program)
    yield made
    made.close()


def order(place: Path, name: str, size: Mapping[str, int], **more: Any) -> dict[str, Any]:
    return {"folder": str(place / name), "out": str(place / f"{name}.json"), **size, **more}


def answer(place: Path, name: str) -> Any:
    return json.loads((place / f"{name}.json").read_text())


#: About a second and a half, of which learning, probing and saving each take a part worth being killed in.
LONG = {"count": 8, "rows": 300, "ballast": 1_000_000}
#: As short as can be: for being killed at every single call.
SHORT = {"count": 2, "rows": 40, "ballast": 0}


def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_happened(processes: Processes, tmp_path: Path) -> None:
    began = time.monotonic()
    assert processes.live(order(tmp_path, "whole", LONG)) == 0
    whole, duration = answer(tmp_path, "whole"), time.monotonic() - began
    assert len(whole["record"]["rows"]) == LONG["count"]
    chance, kills, number = random.Random(), 0, 0
    while kills < 12:
        life = processes.start(order(tmp_path, f"run {number}", LONG))
        time.sleep(chance.uniform(0.01, duration / 3))
        with contextlib.suppress(ProcessLookupError):
            os.kill(life.pid, signal.SIGKILL)
        if life.end() == 0:
            assert answer(tmp_path, f"run {number}") == whole
            number += 1
        else:
            kills += 1
    # The last life is in an interpreter of its own, with other hash seeds and addresses.
    arguments = json.dumps(order(tmp_path, f"run {number}", LONG))
    subprocess.run([sys.executable, processes.program, arguments], check=True, timeout=60)
    assert answer(tmp_path, f"run {number}") == whole


@pytest.fixture(scope="module")
def undisturbed(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, int]], Any]:
    """What a run of some size answers that nobody disturbed."""
    place, answers = tmp_path_factory.mktemp("undisturbed"), {}

    def ask(size: Mapping[str, int]) -> Any:
        name = str(size["count"])
        if name not in answers:
            assert processes.live(order(place, name, size)) == 0
            answers[name] = answer(place, name)
        return answers[name]

    return ask


@pytest.mark.parametrize("what", ["phase", "batch", "probe", "saved"])
def test_a_run_killed_while_it_learns_probes_or_has_just_saved_ends_the_same(
    processes: Processes, undisturbed: Callable[[Mapping[str, int]], Any], tmp_path: Path, what: str
) -> None:
    for nth in range(1, 60, 2 if what in ("batch", "probe") else 1):
        name = f"{what} {nth}"
        end = processes.live(order(tmp_path, name, SHORT, die=[what, nth]))
        if end == 0:
            assert nth > 1, f"there was no {what}"
            break
        assert end == -signal.SIGKILL
        assert processes.live(order(tmp_path, name, SHORT)) == 0
        assert answer(tmp_path, name) == undisturbed(SHORT)
    assert end == 0


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir", "save_file", "rmtree"])
def test_a_run_that_dies_at_any_call_of_the_system_while_saving_ends_the_same(
    processes: Processes, undisturbed: Callable[[Mapping[str, int]], Any], tmp_path: Path, call: str
) -> None:
    size = {**SHORT, "count": 3} if call == "rmtree" else SHORT  # old checkpoints are removed from the third on
    for nth in range(1, 60):
        name = f"{call} {nth}"
        end = processes.live(order(tmp_path, name, size, die=[call, nth]))
        if end == 0:
            assert nth > 1, f"{call} was never called"
            break
        assert end == 9
        assert processes.live(order(tmp_path, name, size)) == 0
        assert answer(tmp_path, name) == undisturbed(size)
        left = [p.name for p in (tmp_path / name).rglob("*") if p.name.endswith(".tmp")]
        assert not left
    assert end == 0


def test_a_run_whose_every_life_is_cut_short_still_arrives(
    processes: Processes, undisturbed: Callable[[Mapping[str, int]], Any], tmp_path: Path
) -> None:
    """Each life dies at its eighth flush: when a checkpoint is in place, and the record beside it is not."""
    lives = 0
    while processes.live(order(tmp_path, "slow", SHORT, die=["fsync", 8])) != 0:
        lives += 1
        assert lives < 20
    assert lives >= 2
    assert answer(tmp_path, "slow") == undisturbed(SHORT)


# The same within this process, where what the user sees can be looked at.


class Regression(GradientLearner):
    """A line of two weights, with dropout."""

    def __init__(self, width: int = 4, recipe: Recipe = Recipe(epochs=2, batch_size=8)) -> None:
        super().__init__(recipe)
        self.width = width
        line = nn.Linear(width, 1)
        nn.init.zeros_(line.weight)
        nn.init.zeros_(line.bias)
        self.net = nn.Sequential(nn.Dropout(0.2), line)
        self.learned: list[int] = []

    def prepare(self, experience: Experience) -> None:
        self.learned.append(experience.index)

    def loss(self, batch: Data) -> Tensor:
        return F.mse_loss(self.predict(batch), batch.tensor("y"))

    def predict(self, data: Data) -> Tensor:
        predicted: Tensor = self.net(data.tensor("x"))
        return predicted[:, 0]

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters()])


class Normalised(Learner):
    """Learns by its own means, through a layer that behaves differently in training and in evaluation mode."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("total", torch.zeros(4))

    @torch.no_grad()
    def learn(self, experience: Experience) -> None:
        self.total += self.norm(experience.train.tensor("x")).abs().sum(0)

    def predict(self, data: Data) -> Tensor:
        return data.tensor("x") @ self.total


class MeanSquare(Probe):
    metrics: ClassVar[Mapping[str, bool]] = {"error": False}

    def score(self, learner: Learner) -> dict[str, float]:
        return {"error": float(F.mse_loss(learner.predict(self.data), self.data.tensor("y")))}


def lines(count: int = 3, **config: Any) -> Stream:
    source = torch.Generator().manual_seed(9)
    parts = [Data(x=torch.randn(24, 4, generator=source) + i, y=torch.randn(24, generator=source)) for i in range(count)]
    probes = [MeanSquare(f"line {i}", part, i) for i, part in enumerate(parts)]
    return Stream("lines", count, lambda i: Experience(i, parts[i]), probes, config=config)


class Listening(Progress):
    """Keeps what the user is told, and raises after an experience if it is asked to."""

    def __init__(self, stop_after: int = -1) -> None:
        self.told: list[str] = []
        self.stop_after, self.started, self.finished = stop_after, (0, 0), 0

    def start(self, name: str, total: int, done: int = 0) -> None:
        self.started = (total, done)

    def tell(self, sentence: str) -> None:
        self.told.append(sentence)

    def experience_done(self) -> None:
        self.stop_after -= 1
        if self.stop_after == 0:
            raise KeyboardInterrupt

    def finish(self) -> None:
        self.finished += 1


def interrupted(place: Path, after: int, make: Callable[[], Learner] = Regression, stream: Stream | None = None) -> None:
    """A run in ``place`` that was interrupted after so many experiences."""
    with pytest.raises(KeyboardInterrupt):
        run(make(), stream or lines(), to=place, device="cpu", progress=Listening(after))


def test_an_interrupted_run_continues_after_what_was_saved_and_says_so(tmp_path: Path) -> None:
    interrupted(tmp_path, 2)
    learner, display = Regression(), Listening()
    record = run(learner, lines(), to=tmp_path, device="cpu", progress=display)
    assert learner.learned == [2]
    assert display.told == [f"Continuing {tmp_path} after 2 of 3 experiences."]
    assert display.started == (3, 2)
    assert display.finished == 1
    assert record.complete
    assert record.repeatable() == run(Regression(), lines(), device="cpu").repeatable()


def test_the_record_on_disk_is_that_of_the_experiences_saved(tmp_path: Path) -> None:
    interrupted(tmp_path, 2)
    saved = Record.load(tmp_path)
    assert len(saved.rows) == 2
    assert not saved.complete
    assert Record.load(tmp_path).repeatable()["rows"] == run(Regression(), lines(), device="cpu").repeatable()["rows"][:2]


def test_a_finished_run_gives_its_record_at_once_and_learns_nothing(tmp_path: Path) -> None:
    first, again, display = Regression(), Regression(), Listening()
    record = run(first, lines(), to=tmp_path, device="cpu")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run(again, lines(), to=tmp_path, device="cpu", progress=display) == record
    assert again.learned == []
    assert display.told == []
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_finished_run_can_be_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results on a shared disk are often read-only."""
    record = run(Regression(), lines(), to=tmp_path, device="cpu")

    def refuse(*args: Any) -> None:
        raise StorageError("written to")

    for module in ("files", "record", "run"):
        monkeypatch.setattr(f"latewood.core.{module}.write_atomically", refuse)
    assert run(Regression(), lines(), to=tmp_path, device="cpu") == record


def test_two_processes_can_not_work_in_one_folder(tmp_path: Path) -> None:
    run(Regression(), lines(), to=tmp_path, device="cpu")
    script = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX);"
    script += "print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run.json")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match="Another process is working in"):
            run(Regression(), lines(), to=tmp_path, device="cpu")
        other.kill()
        other.wait()
        assert run(Regression(), lines(), to=tmp_path, device="cpu").complete  # a dead process holds nothing


def test_a_learner_from_a_finished_run_predicts_as_the_one_that_ran(tmp_path: Path) -> None:
    """It is in evaluation mode, like the one that ran: dropout must not disturb its predictions."""
    first, again = Regression(), Regression()
    run(first, lines(), to=tmp_path, device="cpu")
    run(again, lines(), to=tmp_path, device="cpu")
    probe = lines().probes[0].data
    assert again.training is first.training is False
    assert torch.equal(again.predict(probe), first.predict(probe))


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("transfer", [False, True])
def test_a_learner_that_does_not_switch_its_mode_resumes_in_the_mode_it_was_in(
    tmp_path: Path, after: int, transfer: bool
) -> None:
    def go(learner: Learner, to: Path, progress: Progress | None = None) -> Record:
        return run(learner, lines(), to=to, device="cpu", transfer=transfer, progress=progress)

    whole, resumed = Normalised(), Normalised()
    record = go(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(Normalised(), tmp_path / "killed", Listening(after))
    assert go(resumed, tmp_path / "killed").repeatable() == record.repeatable()
    assert torch.equal(resumed.total, whole.total)


def test_scoring_before_learning_does_not_change_what_is_learned() -> None:
    plain, scored = Normalised(), Normalised()
    run(plain, lines(), device="cpu")
    run(scored, lines(), device="cpu", transfer=True)
    assert torch.equal(plain.total, scored.total)


# Crashes of the process that are exceptions: what is saved is the same, and nothing is left behind.


class Killed(BaseException):
    """As sudden as an exception can be."""


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_run_interrupted_at_any_call_of_the_system_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    whole = Regression()
    expected = run(whole, lines(2), device="cpu").repeatable()
    original = getattr(owner, name)
    for nth in range(1, 80):
        place, count = tmp_path / str(nth), [0]

        def call(*args: Any, count: list[int] = count, nth: int = nth, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == nth:
                raise Killed
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, call)
            try:
                run(Regression(), lines(2), to=place, device="cpu", progress=Listening())
            except Killed:
                finished = False
            else:
                finished = True
        assert not [p for p in place.rglob("*") if p.name.endswith(".tmp")]
        if finished:
            assert nth > 1
            return
        learner = Regression()
        assert run(learner, lines(2), to=place, device="cpu", progress=Listening()).repeatable() == expected
        assert torch.equal(learner.weights(), whole.weights())
    raise AssertionError(f"{name} was still called at the 79th time")


# Folders that are not this run's


def refusal(place: Path, learner: Learner | None = None, stream: Stream | None = None, **more: Any) -> str:
    """What run() says when it refuses; it must have changed nothing."""
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    learner = learner or Regression()
    with pytest.raises(CheckpointError) as refused:
        run(learner, stream or lines(), to=place, device="cpu", progress=Listening(), **more)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert getattr(learner, "learned", []) == []
    return str(refused.value)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"transfer": True}, "transfer is False there and True here"),
        ({"settings": {"note": "x"}}, "note is set only here"),
        ({"stream": lines(4, length=4)}, "stream.length is set only here"),
        ({"learner": Regression(recipe=Recipe(lr=0.5))}, "learner.recipe"),
        (
            {"learner": Regression(recipe=Recipe(epochs=2, batch_size=8, lr=0.5))},
            "learner.recipe.lr is 0.03 there and 0.5 here",
        ),
        ({"learner": Normalised()}, "learner.class is test_resume.Regression there and test_resume.Normalised here"),
    ],
)
def test_a_folder_with_another_run_is_refused_with_the_difference(
    tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    run(Regression(), lines(), to=tmp_path, device="cpu")
    sentence = refusal(tmp_path, **change)
    expected = difference.replace("test_resume", Regression.__module__)
    assert expected in sentence
    assert sentence.startswith(f"{tmp_path} holds another run: ")
    assert sentence.endswith("Choose another folder or remove it.")


def test_another_stream_is_another_run(tmp_path: Path) -> None:
    run(Regression(), lines(shuffle_seed=1), to=tmp_path, device="cpu")
    assert "stream.shuffle_seed is 1 there and 2 here" in refusal(tmp_path, stream=lines(shuffle_seed=2))
    assert "stream.shuffle_seed is set only there" in refusal(tmp_path)


def test_tuples_and_numbers_as_keys_are_no_difference_after_json(tmp_path: Path) -> None:
    config: dict[str, Any] = {"order": (2, 0, 1), "sizes": {0: 3, 1: 4}}
    run(Regression(recipe=Recipe(milestones=(1, 2))), lines(**config), to=tmp_path, device="cpu")
    again = Regression(recipe=Recipe(milestones=(1, 2)))
    assert run(again, lines(**config), to=tmp_path, device="cpu", progress=Listening()).complete
    assert again.learned == []


def test_a_folder_with_foreign_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert refusal(tmp_path) == f"{tmp_path} holds files that are not a run's; choose an empty or a new folder."
    (tmp_path / "thesis.tex").rename(tmp_path / "thesis.tmp")
    assert "holds files that are not a run's" in refusal(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert refusal(tmp_path / "file") == f"{tmp_path / 'file'} is a file; a run needs a folder."


def test_an_empty_folder_and_what_a_killed_start_left_are_taken(tmp_path: Path) -> None:
    (tmp_path / ".run.json.0123456789ab.tmp").write_text("{")
    assert run(Regression(), lines(), to=tmp_path, device="cpu").complete
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "record.json", "run.json"]


def test_a_damaged_configuration_is_told_and_nothing_is_overwritten(tmp_path: Path) -> None:
    run(Regression(), lines(), to=tmp_path, device="cpu")
    (tmp_path / "run.json").write_text('{"seed": ')
    assert "run.json is damaged" in refusal(tmp_path)
    (tmp_path / "run.json").write_bytes(b"\xff\xff")
    assert "run.json is damaged" in refusal(tmp_path)


def test_a_checkpoint_that_does_not_fit_the_learner_is_told(tmp_path: Path) -> None:
    class Wider(Regression):
        pass

    interrupted(tmp_path, 1, Regression)
    plain = json.loads((tmp_path / "run.json").read_text())
    plain["learner"]["class"] = f"{Wider.__module__}.{Wider.__qualname__}"
    (tmp_path / "run.json").write_text(json.dumps(plain))
    learner = Wider()
    learner.net.append(nn.Linear(1, 1))
    assert "does not fit this learner" in refusal(tmp_path, learner)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_configuration_that_json_can_not_hold_is_refused_before_anything_is_learned(tmp_path: Path, value: float) -> None:
    learner = Regression()
    with pytest.raises(ConfigurationError):
        run(learner, lines(), to=tmp_path / "run", device="cpu", settings={"threshold": value})
    assert learner.learned == []
    assert not (tmp_path / "run").exists()


def test_describing_a_difference_names_the_first_one_by_its_path() -> None:
    assert describe_difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) == ""
    assert describe_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c is 2 there and 3 here"
    assert describe_difference({"a": {"b": 1}}, {"a": 1}) == "a is {'b': 1} there and 1 here"
    assert describe_difference({"a": 1}, {"a": 1, "b": {"c": 1}}) == "b is set only here"


def test_only_a_run_can_be_discarded(tmp_path: Path) -> None:
    run(Regression(), lines(), to=tmp_path / "run", device="cpu")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(CheckpointError, match="photos is not the folder of a run; nothing was removed"):
        discard(tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").exists()
    discard(tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Damage and full disks


@pytest.mark.parametrize("name", ["state.safetensors", "info.json", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(tmp_path: Path, name: str) -> None:
    interrupted(tmp_path, 2)
    damaged = tmp_path / "checkpoints" / "000002" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    learner, display = Regression(), Listening()
    record = run(learner, lines(), to=tmp_path, device="cpu", progress=display)
    assert learner.learned == [1, 2]
    assert "000002" in display.told[0]
    assert display.told[0].endswith("The one before it is used.")
    assert display.told[1].endswith("after 1 of 3 experiences.")
    assert record.repeatable() == run(Regression(), lines(), device="cpu").repeatable()


def test_a_run_whose_checkpoints_are_all_damaged_starts_over_and_can_be_interrupted_again(tmp_path: Path) -> None:
    run(Regression(), lines(), to=tmp_path, device="cpu")
    for info in (tmp_path / "checkpoints").rglob("info.json"):
        info.write_text("")
    interrupted(tmp_path, 1)
    learner, display = Regression(), Listening()
    record = run(learner, lines(), to=tmp_path, device="cpu", progress=display)
    assert display.told == [f"Continuing {tmp_path} after 1 of 3 experiences."]
    assert learner.learned == [1, 2]
    assert record.repeatable() == run(Regression(), lines(), device="cpu").repeatable()


def test_a_lost_record_is_written_again_from_the_checkpoint(tmp_path: Path) -> None:
    record = run(Regression(), lines(), to=tmp_path, device="cpu")
    (tmp_path / "record.json").unlink()
    run(Regression(), lines(), to=tmp_path, device="cpu")
    assert Record.load(tmp_path) == record


def test_a_run_on_a_full_disk_stops_with_a_sentence_and_continues_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latewood.core import checkpoint

    save_file, saved = safetensors.torch.save_file, [0]

    def full(tensors: dict[str, Tensor], filename: Path) -> None:
        saved[0] += 1
        if saved[0] == 3:
            filename.write_bytes(b"as much as fits")
            raise OSError(28, "No space left on device")
        save_file(tensors, filename)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(StorageError, match=r"000003: the disk is full\. What was saved before is untouched"):
            run(Regression(), lines(), to=tmp_path, device="cpu")
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000001", "000002"]
    learner = Regression()
    record = run(learner, lines(), to=tmp_path, device="cpu", progress=Listening())
    assert learner.learned == [2]
    assert record.repeatable() == run(Regression(), lines(), device="cpu").repeatable()


def test_a_loss_that_became_nan_leaves_what_was_saved(tmp_path: Path) -> None:
    class Fragile(Regression):
        poison: ClassVar[bool] = True

        def loss(self, batch: Data) -> Tensor:
            bad = self.poison and self.learned[-1] == 1
            return super().loss(batch) * (float("nan") if bad else 1.0)

    with pytest.raises(LatewoodError, match="became NaN"):
        run(Fragile(), lines(), to=tmp_path, device="cpu")
    found = Checkpoints(tmp_path / "checkpoints").newest()
    assert found is not None
    assert found[0] == 1
    Fragile.poison = False
    learner = Fragile()
    assert run(learner, lines(), to=tmp_path, device="cpu", progress=Listening()).complete
    assert learner.learned == [1, 2]


# What a run asks of its probes


def test_probes_of_one_name_or_with_different_metrics_are_refused() -> None:
    class Other(MeanSquare):
        metrics: ClassVar[Mapping[str, bool]] = {"error": True}

    data = lines().probes[0].data
    for probes, sentence in (
        ([MeanSquare("a", data, 0), MeanSquare("a", data, 0)], "Two probes of stream 'x' have one name"),
        ([MeanSquare("a", data, 0), Other("b", data, 0)], "must have the same metrics"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            run(Regression(), Stream("x", 1, lambda i: lines()[0], probes), device="cpu")


def test_a_probe_that_does_not_return_its_metrics_is_named() -> None:
    class Forgetful(MeanSquare):
        def score(self, learner: Learner) -> dict[str, float]:
            return {"eror": 1.0}

    data = lines().probes[0].data
    with pytest.raises(LatewoodError, match=r"line 0.*error"):
        run(Regression(), Stream("x", 1, lambda i: lines()[0], [Forgetful("line 0", data, 0)]), device="cpu")


def test_an_experience_that_is_built_under_another_number_is_refused() -> None:
    """Its number decides its randomness and which probes are seen."""
    learner = Regression()
    with pytest.raises(LatewoodError, match=r"'confused'.* experience 0 .*1"):
        run(learner, Stream("confused", 3, lambda i: lines()[0], lines().probes), device="cpu")
    assert learner.learned == [0]


def test_probes_score_in_evaluation_mode_and_without_gradients() -> None:
    class Careless(Normalised):
        def learn(self, experience: Experience) -> None:
            self.train()
            super().learn(experience)

    class Watching(MeanSquare):
        def score(self, learner: Learner) -> dict[str, float]:
            assert not learner.training
            assert not torch.is_grad_enabled()
            return super().score(learner)

    stream = Stream("x", 2, lambda i: lines()[i], [Watching("p", lines().probes[0].data, 0)])
    assert run(Careless(), stream, device="cpu", transfer=True).complete
    assert run(Regression(), stream, device="cpu").complete
    assert torch.is_grad_enabled()


def test_a_score_that_is_not_finite_is_recorded_as_missing(tmp_path: Path) -> None:
    class Infinite(MeanSquare):
        def score(self, learner: Learner) -> dict[str, float]:
            return {"error": float("inf")}

    stream = Stream("x", 2, lambda i: lines()[i], [Infinite("p", lines().probes[0].data, 0)])
    record = run(Regression(), stream, to=tmp_path, device="cpu")
    assert [row.scores["error"] for row in record.rows] == [[None], [None]]
    assert Record.load(tmp_path) == record


def test_a_stream_without_probes_can_be_learned(tmp_path: Path) -> None:
    learner = Regression()
    record = run(learner, Stream("x", 2, lambda i: lines()[i], ()), to=tmp_path, device="cpu")
    assert learner.learned == [0, 1]
    assert record.complete
    assert Record.load(tmp_path) == record
