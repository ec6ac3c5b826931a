"""The fast path of the language loop, several processes, and the benchmark that measures them."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latewood.core.cost import metered
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.progress import Progress
from latewood.core.recipe import Recipe
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.language import loop as module
from latewood.language import sharding
from latewood.language.learners.continue_ import Continue
from latewood.language.learners.mer import MER
from latewood.language.nets import causal
from latewood.language.recipe import TextRecipe

LENGTH = 24


def rows(count: int = 48) -> Data:
    chance = torch.Generator().manual_seed(0)
    return Data(tokens=torch.randint(0, 256, (count, LENGTH), generator=chance, dtype=torch.int32))


def made(**recipe: Any) -> Continue:
    torch.manual_seed(0)
    return Continue(causal(rows(1), layers=1, width=16, heads=2), TextRecipe(**{"batch_size": 8, "steps": 4, **recipe}))


def learned(**recipe: Any) -> dict[str, Tensor]:
    one = made(**recipe)
    one.learn(Experience(0, rows()))
    return one.backbone.state_dict()


def close(one: dict[str, Tensor], other: dict[str, Tensor], distance: float) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[n], other[n], rtol=0, atol=distance) for n in one)


# What is compiled


class Compiled:
    """Stands for compiled code: counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        self.inner, self.calls = inner, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.inner.forward(*arguments)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Compiled]:
    """What was compiled; no compiler is needed."""
    found: list[Compiled] = []

    def compile_(one: nn.Module) -> None:
        found.append(Compiled(one))
        one._compiled_call_impl = found[-1]

    monkeypatch.setattr(nn.Module, "compile", compile_)
    return found


def test_compiled_code_runs_each_step_but_the_one_that_is_counted_and_nothing_of_it_stays(compilations: list[Compiled]) -> None:
    plain, one = made(), made(compile="on")
    with metered() as meter:
        plain.learn(Experience(0, rows()))
    with metered() as other:
        one.learn(Experience(0, rows()))
    assert [compiled.calls for compiled in compilations] == [3]
    assert meter.flops == other.flops > 0
    assert all(part._compiled_call_impl is None for part in one.modules())
    assert close(one.state_dict(), plain.state_dict(), 0.0)


def test_nothing_is_compiled_unless_it_is_asked_for(compilations: list[Compiled]) -> None:
    learned()
    assert compilations == []


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch compiles with a C++ compiler: none here")
def test_really_compiled_training_ends_where_plain_training_does() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    compiled = learned(compile="on")
    assert counters["stats"]["unique_graphs"] >= 1
    assert close(compiled, learned(), 1e-4)


# What is measured


def test_auto_takes_what_the_measurement_says_and_never_a_layout_of_images(
    compilations: list[Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str, tuple[int, ...]]] = []

    def decide(measured: Any, batch: Data, recipe: Recipe) -> Recipe:
        asked.append((recipe.precision, recipe.compile, recipe.channels_last, tuple(batch.tensor("tokens").shape)))
        return replace(recipe, precision="float32", compile="on")

    monkeypatch.setattr(module, "decide", decide)
    state = learned(precision="auto", compile="auto", channels_last="auto", accumulation=2)
    assert asked == [("auto", "auto", "off", (4, LENGTH))]
    assert len(compilations) == 1 and compilations[0].calls == 8
    assert close(state, learned(accumulation=2), 0.0)


def test_measuring_really_happens_on_a_copy_and_changes_nothing_that_is_learned() -> None:
    one = made(precision="auto")
    one.learn(Experience(0, rows()))
    chosen = [learned(precision=precision) for precision in ("float32", "bfloat16")]
    assert any(close(one.backbone.state_dict(), state, 0.0) for state in chosen)


def test_exact_and_half_precision_follow_one_another_in_one_process() -> None:
    exact, half, again = learned(), learned(precision="bfloat16"), learned()
    assert close(exact, again, 0.0)
    assert close(exact, half, 0.05) and not close(exact, half, 0.0)
    assert {value.dtype for value in half.values()} == {torch.float32}


# Several processes

_WORKER = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from safetensors.torch import save_file
from test_speed import *
place = Path(sys.argv[1])
{body}
save_file({{k: v.contiguous() for k, v in state.items()}}, place / "found.safetensors")
"""


def two_processes(folder: Path, body: str, **environment: str) -> list[dict[str, Tensor]]:
    """What ``body`` left in ``state``, in each of two processes that train together."""
    from safetensors.torch import load_file

    program = _WORKER.format(tests=str(Path(__file__).parent), body=body)
    port = 20_000 + random.SystemRandom().randrange(20_000)
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", **environment}
    common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    places = [folder / str(rank) for rank in range(2)]
    running = []
    for rank, place in enumerate(places):
        place.mkdir()
        arguments = [sys.executable, "-c", program, str(place)]
        running.append(subprocess.Popen(arguments, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
    assert [process.wait(timeout=600) for process in running] == [0, 0]
    return [load_file(place / "found.safetensors") for place in places]


def test_processes_whose_shares_differ_by_a_row_train_as_one_does(tmp_path: Path) -> None:
    found = two_processes(tmp_path, "state = learned(batch_size=7)")
    assert all(close(state, learned(batch_size=7), 1e-5) for state in found)


def test_two_processes_keep_one_run_that_one_of_them_writes(tmp_path: Path) -> None:
    """With a buffer on disk for each."""
    body = """
from latewood.language.learners.mer import MER
torch.manual_seed(0)
again = MER(causal(rows()[:1], layers=1, width=16, heads=2), share=0.5, recipe=TextRecipe(**SCHEDULE, batch_size=8))
record = run(again, stream(), to=place.parent / "run", device="cpu")
state = again.state_dict()
"""
    one, other = two_processes(tmp_path, body)
    assert all(torch.equal(one[name], other[name]) for name in one if name != "_extra_state")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("checkpoints", "files", "files-1", "record.json", "run.json")
    ]


class Dying(Progress):
    """Ends the process's work after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, loss: Tensor | None = None) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def stream() -> Stream:
    return Stream("rows", 2, lambda index: Experience(index, rows()), ())


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
SCHEDULE: dict[str, Any] = {"arrivals": 2, "steps": 4, "save_every": 2}


def test_a_model_sharded_over_two_processes_is_trained_as_in_one_by_halves_and_resumes(tmp_path: Path) -> None:
    """Killed within the second arrival, it goes on from there with the moments that it had."""
    body = """
held = {}
before = module.Work._step
def looking(self, *rest):
    loss = before(self, *rest)
    parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
    moments = [self.optimizer.state[p]["exp_avg"] for p in parameters]
    held.update(weights=sum(p.to_local().numel() for p in parameters), moments=sum(m.to_local().numel() for m in moments))
    return loss
module.Work._step = looking
try:
    run(made(**SCHEDULE), stream(), to=place.parent / "run", device="cpu", progress=Dying(7))
except KeyboardInterrupt:
    pass
again = made(**SCHEDULE)
run(again, stream(), to=place.parent / "run", device="cpu")
state = {name: torch.tensor(count) for name, count in held.items()} | again.state_dict()
"""
    alone = made(**SCHEDULE)
    run(alone, stream(), device="cpu")
    held = torch.zeros(2, dtype=torch.int64)
    for state in two_processes(tmp_path, body, **SHARDED):
        part = torch.stack([state.pop("weights"), state.pop("moments")])
        held += part
        assert part.max() < 0.6 * sum(p.numel() for p in alone.backbone.parameters())
        assert close(state, alone.state_dict(), 1e-5)
        assert any(name.endswith("exp_avg") for name in state)
    assert held.tolist() == [sum(p.numel() for p in alone.backbone.parameters())] * 2


def test_what_cannot_be_sharded_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigurationError, match="--fsdp_version 2"):
        sharding.asked_for()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert sharding.asked_for()
    torch.manual_seed(0)
    mer = MER(causal(rows(1), layers=1, width=16, heads=2), recipe=TextRecipe(batch_size=8, steps=2))
    monkeypatch.setattr(module.Work, "_distributed", True)
    with pytest.raises(ConfigurationError, match="MER looks at the whole model after each step"):
        mer.learn(Experience(0, rows()))


# The benchmark


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "language.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_language", path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


def test_a_preset_gives_the_sizes_and_each_can_be_replaced(benchmark: ModuleType) -> None:
    wanted = benchmark.arguments(["--preset", "124m", "--device", "cuda", "--peak-tflops", "989", "--batch", "32"])
    chosen = benchmark.sizes(wanted)
    assert (chosen.layers, chosen.width, chosen.vocabulary, chosen.length) == (12, 768, 50257, 1024)
    assert (chosen.batch, chosen.precision, chosen.compile, wanted.peak_tflops) == (32, "bfloat16", "both", 989.0)
    plain = benchmark.sizes(benchmark.arguments([]))
    assert (plain.precision, plain.compile, plain.length, plain.batch) == ("float32", "off", 256, 16)
    with pytest.raises(SystemExit):
        benchmark.arguments(["--steps", "1"])


def test_a_model_of_124_million_weights_needs_the_flops_of_the_formula(benchmark: ModuleType) -> None:
    few = replace(benchmark.PRESETS["124m"], layers=1, width=64, heads=2, vocabulary=100, length=32, batch=2)
    net = few.net(torch.device("cpu"))
    products = sum(p.numel() for name, p in net.named_parameters() if "embed" not in name)
    assert benchmark.flops(net, few) == (6 * products + 12 * 64 * 32) * 64


def test_the_benchmark_measures_every_part_and_both_sides_do_the_same_work(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--layers", "1", "--width", "16", "--heads", "2", "--length", "16", "--batch", "8", "--rounds", "1", "--steps", "3"]
    rest = ["--megabytes", "1", "--folder", str(tmp_path), "--peak-tflops", "0.1", "--json", str(tmp_path / "found.json")]
    benchmark.main(tiny + rest)
    found = json.loads((tmp_path / "found.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    against = found["continue against by hand"]
    assert against["greatest distance of a weight"] < 1e-4
    assert 0 < against["MFU continue"] < 1
    assert found["mer against replay"]["time ratio"] > 0
    assert found["buffer on disk"]["megabytes on disk"] > 0.9
    assert 0 < found["mixture"]["share of a step"] < 1
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
