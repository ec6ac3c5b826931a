"""What the language wing costs: training against a bare loop, MER against replay, the buffer on disk, the mixture.

All that is compared runs in one process, in turn, arrival by arrival, on the same batches. After the first arrival ``continue``
and the loop by hand must have the same weights but for the last bits, so that the comparison is of the same work.

    python benchmarks/language.py [--rounds 3] [--steps 6] [--json FILE] [--layers 4 --width 256 ...]
    python benchmarks/language.py --device cuda --preset 124m --peak-tflops 989 --steps 30

A step's time is the median over all steps but the first of each arrival; what an arrival costs once (the optimiser, counting
the FLOPs of one step) is in the figure of whole arrivals. The buffer on disk is filled with ``--megabytes``; before each step
the system is asked to forget the files, so that every row comes from the disk: harsher than memory for a tenth of the data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience
from latewood.core.cost import metered
from latewood.core.loop import resolve_device
from latewood.core.seeding import seeded
from latewood.language.learner import LanguageLearner
from latewood.language.learners.continue_ import Continue
from latewood.language.learners.mer import MER
from latewood.language.learners.replay import Replay
from latewood.language.mixture import Mixture, by_source
from latewood.language.nets import causal
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe
from latewood.parts.disk_buffer import DiskBuffer

PARTS = ("loop", "mer", "disk", "mixture")
Marks = list[tuple[float, float]]


@dataclass(frozen=True)
class Sizes:
    """The model, and what a step learns from."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    vocabulary: int = 257
    length: int = 256
    batch: int = 16
    precision: str = "float32"
    compile: str = "off"

    def net(self, device: torch.device) -> CausalLM:
        example = Data(tokens=torch.zeros(1, self.length, dtype=torch.int32))
        with seeded(0):
            net = causal(
                example,
                layers=self.layers,
                width=self.width,
                heads=self.heads,
                vocabulary=self.vocabulary,
                context=self.length,
            )
        return net.to(device)

    def recipe(self, steps: int, compiled: bool) -> TextRecipe:
        way: dict[str, Any] = {"precision": self.precision, "compile": "on" if compiled else "off"}
        return TextRecipe(batch_size=self.batch, steps=steps, **way)

    def rows(self, count: int, seed: int) -> Data:
        chance = torch.Generator().manual_seed(seed)
        return Data(tokens=torch.randint(0, self.vocabulary, (count, self.length), generator=chance, dtype=torch.int32))


PRESETS = {"small": Sizes(), "124m": Sizes(12, 768, 12, 50257, 1024, 16, "bfloat16", "both")}


# Timing -----------------------------------------------------------------------------------------------------------------


def now(device: torch.device) -> tuple[float, float]:
    """Seconds by the wall clock and of the processor, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


@dataclass
class Times:
    """Of all arrivals of one side: the seconds of each step, the same of the processor, and those of each whole arrival."""

    steps: list[float]
    processor: list[float]
    arrivals: list[float]

    def add(self, start: tuple[float, float], marks: Marks, end: tuple[float, float]) -> None:
        self.steps += [after[0] - before[0] for before, after in itertools.pairwise(marks)]
        self.processor += [after[1] - before[1] for before, after in itertools.pairwise(marks)]
        self.arrivals.append(end[0] - start[0])

    @property
    def step(self) -> float:
        return statistics.median(self.steps)


#: Does one arrival, and puts down a mark after each step.
Side = Callable[[int, Marks], None]


def in_turn(sides: Mapping[str, Side], rounds: int, device: torch.device, title: str) -> dict[str, Times]:
    """The sides' times, arrival by arrival in turn, each round in the other order; the first round warms up."""
    times = {name: Times([], [], []) for name in sides}
    for number in range(rounds + 1):
        tell(f"{title}: round {number} of {rounds}")
        for name in list(sides) if number % 2 else reversed(list(sides)):
            marks: Marks = []
            start = now(device)
            sides[name](number, marks)
            end = now(device)
            if number:
                times[name].add(start, marks, end)
    return times


def against(ours: Times, theirs: Times, device: torch.device) -> dict[str, float]:
    """Time of theirs divided by ours: above 1 if ours is the faster."""
    ratios = {"ratio": theirs.step / ours.step}
    if device.type == "cpu":
        ratios["ratio of processor time"] = statistics.median(theirs.processor) / statistics.median(ours.processor)
    return ratios | {"ratio of whole arrivals": statistics.median(theirs.arrivals) / statistics.median(ours.arrivals)}


def tell(sentence: str) -> None:
    """One line that is written over, on a terminal; lines of their own elsewhere."""
    print(f"\r\033[K{sentence}" if sys.stderr.isatty() else sentence, end="" if sys.stderr.isatty() else "\n", file=sys.stderr)
    sys.stderr.flush()


# The sides --------------------------------------------------------------------------------------------------------------


def learning(learner: LanguageLearner, sizes: Sizes, steps: int) -> Side:
    """Arrivals through the library, their cost counted as in a run."""

    def arrive(number: int, marks: Marks) -> None:
        train = sizes.rows(sizes.batch * steps, number)
        after, device = type(learner).after_step, learner.device

        def marking(step: int, optimizer: torch.optim.Optimizer, mixture: Mixture) -> None:
            after(learner, step, optimizer, mixture)
            marks.append(now(device))

        learner.after_step = marking  # type: ignore[method-assign]
        learner.generator.manual_seed(number)
        with metered():
            learner.learn(Experience(number, train))

    return arrive


class ByHand:
    """Continual pre-training as one would write it without a library."""

    def __init__(self, sizes: Sizes, steps: int, compiled: bool, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        self.recipe = sizes.recipe(steps, compiled)
        self.net: nn.Module = sizes.net(device).network
        self.model: Any = torch.compile(self.net) if compiled else self.net

    def batches(self, number: int) -> list[Tensor]:
        """What ``continue`` draws from the same rows, on the device already."""
        chance = torch.Generator().manual_seed(number)
        torch.randint(2**62, (), generator=chance)  # the draw that seeds the library's scope
        seed = int(torch.randint(2**62, (), generator=chance))
        train = self.sizes.rows(self.sizes.batch * (self.recipe.steps or 0), number)
        mixture = Mixture(by_source(train), batch_size=self.sizes.batch, seed=seed)
        return [mixture.draw().tensor("tokens").to(self.device).long() for _ in range(self.recipe.steps or 0)]

    def arrive(self, number: int, marks: Marks) -> None:
        batches = self.batches(number)
        parameters = list(self.net.parameters())
        groups = [{"params": [p for p in parameters if p.dim() >= 2]}]
        groups += [{"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]  # type: ignore[dict-item]
        optimizer = torch.optim.AdamW(groups, lr=self.recipe.lr, betas=(0.9, 0.95), weight_decay=0.1)
        self.net.train()
        for step, tokens in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.lr * self.recipe.rate(step, len(batches))
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.sizes.precision == "bfloat16"):
                logits = self.model(input_ids=tokens).logits
                loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            marks.append(now(self.device))


# The parts --------------------------------------------------------------------------------------------------------------


def loop(sizes: Sizes, rounds: int, steps: int, device: torch.device, peak: float | None, compiled: bool) -> dict[str, float]:
    """``continue`` against the loop by hand."""
    ours = Continue(sizes.net(device), sizes.recipe(steps, compiled))
    plain = ByHand(sizes, steps, compiled, device)
    sides: dict[str, Side] = {"continue": learning(ours, sizes, steps), "by hand": plain.arrive}
    for side in sides.values():
        side(0, [])
    mine, theirs = ours.backbone.network.state_dict(), plain.net.state_dict()
    # Later on the last bits, in which the two ways to take a mean differ, grow as in any two runs.
    distance = max(float((mine[name] - theirs[name]).abs().max()) for name in theirs)
    times = in_turn(sides, rounds, device, f"continue and by hand{', compiled' if compiled else ''}")
    tokens = sizes.batch * sizes.length
    rates = {f"tokens/s {name}": tokens / side.step for name, side in times.items()}
    if peak:
        rates |= {f"MFU {name}": flops(ours.backbone, sizes) / side.step / (peak * 1e12) for name, side in times.items()}
    return {**against(times["continue"], times["by hand"], device), **rates, "greatest distance of a weight": distance}


def flops(net: CausalLM, sizes: Sizes) -> float:
    """The FLOPs of a step that the model needs: 6 for each weight of a product and token, and the attention."""
    weights = sum(p.numel() for p in net.parameters()) - sizes.vocabulary * sizes.width
    return (6 * weights + 12 * sizes.layers * sizes.width * sizes.length) * sizes.batch * sizes.length


def mer(sizes: Sizes, rounds: int, steps: int, device: torch.device) -> tuple[dict[str, float], float]:
    """MER against replay at batches of equal size and share; and MER's seconds for a step."""
    learners = {
        "replay": Replay(sizes.net(device), recipe=sizes.recipe(steps, False)),
        "mer": MER(sizes.net(device), recipe=sizes.recipe(steps, False)),
    }
    sides = {name: learning(learner, sizes, steps) for name, learner in learners.items()}
    times = in_turn(sides, rounds, device, "MER and replay")
    # The pull comes after every fifth step, so it is in the mean and not in the median; other work on the machine too.
    clock = "processor" if device.type == "cpu" else "steps"
    means = {name: statistics.fmean(getattr(side, clock)) for name, side in times.items()}
    result = {f"time {name}": value for name, value in against(times["replay"], times["mer"], device).items()}
    return {**result, "time ratio of means": means["mer"] / means["replay"]}, times["mer"].step


def disk(sizes: Sizes, steps: int, megabytes: int, folder: str | None, step: float, device: torch.device) -> dict[str, float]:
    """How long training waits for a buffer whose rows all lie on the disk."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        state, grown, seconds = filled(Path(place) / "buffer", sizes, megabytes)
        learner = MER(sizes.net(device), folder=str(Path(place) / "buffer"), recipe=sizes.recipe(steps, False))
        learner.set_extra_state(torch.tensor(list(json.dumps([state]).encode()), dtype=torch.uint8))
        train = sizes.rows(sizes.batch * steps, 0)
        learner.begin(Experience(0, train))
        waited: dict[str, list[float]] = {"adding": [], "drawing": []}
        for start in range(0, len(train), learner.rows()):
            tell(f"the buffer on disk: step {start // learner.rows() + 1}")
            cold = forgotten(Path(place) / "buffer")
            for name, call in _calls(learner, train[start : start + learner.rows()]):
                before = time.perf_counter()
                call()
                waited[name].append(time.perf_counter() - before)
        held = sum(path.stat().st_size for path in (Path(place) / "buffer").iterdir())
        learner.buffer.close()
    shares = {f"{name}, share of a step": statistics.median(times) / step for name, times in waited.items()}
    worst = max(a + d for a, d in zip(waited["adding"], waited["drawing"], strict=True)) / step
    rows = state["rows"]
    return {
        **shares,
        "greatest share of a step": worst,
        "megabytes on disk": held / 1e6,
        "megabytes of memory it took": grown / 1e6,
        "rows stored a second": rows / seconds,
        "read from the disk": float(cold),
    }


def _calls(learner: MER, new: Data) -> list[tuple[str, Callable[[], Any]]]:
    buffer, chance = learner.buffer, learner.generator
    tokens = new.tensor("tokens")
    return [
        ("adding", lambda: buffer.add(tokens, chance)),
        ("drawing", lambda: buffer.draw(learner.old_rows, chance)),
    ]


def filled(folder: Path, sizes: Sizes, megabytes: int) -> tuple[dict[str, Any], float, float]:
    """The state of a buffer of so many megabytes, by how many bytes the process grew over it, and the seconds it took."""
    folder.mkdir()
    piece = sizes.rows(2000, 0).tensor("tokens")
    with DiskBuffer(folder, (sizes.length,)) as buffer:
        buffer.add(piece)
        before, start = resident(), time.perf_counter()
        for number in range(1, max(2, megabytes * 10**6 // (piece.numel() * 4))):
            if number % 50 == 0:
                tell(f"the buffer on disk: {number * piece.numel() * 4 // 10**6} of {megabytes} megabytes")
            buffer.add(piece)
        state = buffer.state()
        return state, max(0.0, resident() - before), time.perf_counter() - start


def resident() -> float:
    """Bytes of memory that the process holds; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0.0


def forgotten(folder: Path) -> bool:
    """Ask the system to keep nothing of these files in memory; whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    return True


def mixture(sizes: Sizes, step: float) -> dict[str, float]:
    """The time of a draw from three domains."""
    tell("the mixture")
    domains = {name: sizes.rows(20_000, seed) for seed, name in enumerate(("prose", "code", "mathematics"))}
    drawn = Mixture(domains, {"prose": 0.5, "code": 0.3, "mathematics": 0.2}, batch_size=sizes.batch)
    times = list(_timed(drawn.draw, 300))
    return {"milliseconds of a draw": statistics.median(times) * 1e3, "share of a step": statistics.median(times) / step}


def _timed(call: Callable[[], Any], count: int) -> Iterator[float]:
    for _ in range(count):
        start = time.perf_counter()
        call()
        yield time.perf_counter() - start


# The command ------------------------------------------------------------------------------------------------------------


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), default="small")
    for name in ("layers", "width", "heads", "vocabulary", "length", "batch"):
        parser.add_argument(f"--{name}", type=int, help="in place of the preset's")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="in place of the preset's")
    parser.add_argument("--compile", choices=("off", "on", "both"), help="in place of the preset's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="arrivals of each side that are measured")
    parser.add_argument("--steps", type=int, default=6, help="steps of an arrival, at least 2")
    parser.add_argument("--megabytes", type=int, default=640, help="of the buffer on disk")
    parser.add_argument("--folder", help="on the disk to measure; default: the system's folder for temporary files")
    parser.add_argument("--peak-tflops", type=float, help="of the device, in the precision used; adds MFU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args(given)
    if wanted.steps < 2 or wanted.rounds < 1:
        parser.error("it takes --steps of at least 2 and --rounds of at least 1")
    return wanted


def sizes(wanted: argparse.Namespace) -> Sizes:
    """The preset, with what was given in its place."""
    changes = {name: value for name, value in vars(wanted).items() if name in Sizes.__annotations__ and value is not None}
    return replace(PRESETS[wanted.preset], **changes)


def measured(wanted: argparse.Namespace) -> dict[str, Any]:
    device, chosen = resolve_device(wanted.device), sizes(wanted)
    result: dict[str, Any] = {"sizes": vars(chosen), "device": device.type, "threads": torch.get_num_threads()}
    step = None
    if "loop" in wanted.parts:
        for compiled in {"off": [False], "on": [True], "both": [False, True]}[chosen.compile]:
            found = loop(chosen, wanted.rounds, wanted.steps, device, wanted.peak_tflops, compiled)
            result["continue against by hand" + (", compiled" if compiled else "")] = found
            step = chosen.batch * chosen.length / found["tokens/s continue"]
    if "mer" in wanted.parts:
        result["mer against replay"], step = mer(chosen, wanted.rounds, wanted.steps, device)
    if step is None:
        only = {"continue": learning(Continue(chosen.net(device), chosen.recipe(wanted.steps, False)), chosen, wanted.steps)}
        step = in_turn(only, wanted.rounds, device, "a step")["continue"].step
    result["milliseconds of a step"] = step * 1e3
    if "disk" in wanted.parts:
        result["buffer on disk"] = disk(chosen, wanted.steps, wanted.megabytes, wanted.folder, step, device)
    if "mixture" in wanted.parts:
        result["mixture"] = mixture(chosen, step)
    return result


def main(given: Sequence[str] | None = None) -> None:
    wanted = arguments(given)
    result = measured(wanted)
    tell("done")
    print(json.dumps(result, indent=1))
    if wanted.json:
        wanted.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
