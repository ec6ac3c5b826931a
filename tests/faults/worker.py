"""Works on model directories in processes that may be killed. Each is forked from one that has imported everything, so that
a life costs a tenth of a second. Parents load this file too, to do the same work undisturbed."""

from __future__ import annotations

import functools
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from latewood.core.errors import LatewoodError
from latewood.images.datasets import ImageData, load_images
from latewood.model.model import Model

Operation = Mapping[str, Any]

#: Names that no other word on the disk contains.
NAMES = tuple(f"digit-{word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
#: A child ends itself after so many seconds, so that nobody waits for it for ever.
LONGEST_LIFE = 100
#: What a process ends with that was told to die at a call.
DIED = 9
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


@functools.cache
def digits() -> ImageData:
    """Real ones, 8 by 8."""
    return load_images("digits")


def rows(classes: list[int], count: int, seed: int, swap: bool = False) -> dict[str, Any]:
    """So many digits of some classes, with a little noise of their own, so that no content comes twice.

    With ``swap`` the first two classes have each other's names, which the gate must not let pass.
    """
    generator = torch.Generator().manual_seed(seed)
    part = digits().subset(classes).train
    drawn = torch.randint(len(part), (count,), generator=generator)
    images = part["image"][drawn]
    noise = torch.randint(0, 4, images.shape, generator=generator, dtype=torch.uint8)
    names = [NAMES[number] for number in classes]
    if swap:
        names[:2] = names[1::-1]
    return {"image": (images // 4 * 4) + noise, "label": [names[int(part["label"][i])] for i in drawn]}


def probe() -> torch.Tensor:
    """Images on which models are compared."""
    images: torch.Tensor = digits().test["image"][:60]
    return images


def make(folder: Path, **options: Any) -> Model:
    """A model of digits on their pixels, small enough to learn in a moment, with many canaries."""
    wanted: dict[str, Any] = {"settings": {"expansion": 60}, "canaries": 0.3, "most_canaries": 20, "keep": 5}
    wanted |= {"backbone": "pixels", "size": 8, "channels": 1, "tell": lambda _: None}
    return Model.init(folder, **{**wanted, **options})


def perform(model: Model, operation: Operation) -> None:
    """Do one thing to a model; its facts are those of JSON."""
    verb = operation["verb"]
    if verb == "learn":
        model.learn(rows(**operation["rows"]), source=operation["source"], wait=operation.get("wait", 0))
    elif verb == "forget":
        model.forget(**operation["what"])
    elif verb == "rollback":
        model.rollback(operation["number"])
    elif verb == "limit":  # how large a file may grow, for a while
        _limit_files(operation["bytes"])
    else:
        getattr(model, verb)()


def _limit_files(size: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


# What is seen of a directory from outside


def history(model: Model) -> list[dict[str, Any]]:
    """What the log of a directory tells, without what differs between two that did the same: times and names of blobs."""
    mine = ("number", "parent", "event", "about", "candidate", "removes")
    content = ("classes", "samples", "added", "lost", "temperature", "arrivals", "next_class", "numeric")
    return [
        {name: getattr(version, name) for name in mine} | {name: version.content[name] for name in content}
        for version in model.log()
    ]


def scores(model: Model) -> torch.Tensor:
    """What the model compares when it predicts the probe, classes in the order of their names."""
    state = model._state
    names = [state.names[number] for number in state.learner.classes.labels.tolist()]
    if not names:
        return torch.empty(0)
    found: torch.Tensor = state.learner.scores(model.embedder.data(model.embedder(probe())))
    return found[:, sorted(range(len(names)), key=names.__getitem__)]


def alike(one: Model, other: Model) -> bool:
    """Whether two models tell the same of themselves, and predict the same."""
    assert history(one) == history(other)
    assert one.version.number == other.version.number
    assert (one.candidate and one.candidate.number) == (other.candidate and other.candidate.number)
    assert one.classes == other.classes
    return torch.allclose(scores(one), scores(other), rtol=0, atol=1e-8)


def check_blobs(model: Model) -> None:
    """Verify every blob of every version that can be rolled back to."""
    for version in model.log():
        if model.available(version):
            for name in version.blobs:
                model._store.get(name)


def blobs(folder: Path) -> set[str]:
    """The names of all blobs that lie there."""
    return {path.stem for path in (folder / "blobs").rglob("*.safetensors")}


def garbage(model: Model) -> list[str]:
    """What lies in a directory and belongs to none of its versions."""
    folder = model.folder
    needed = {name for version in model.log() for name in version.blobs}
    places = {folder / name for name in ("HEAD", "lock", "versions", "blobs", "backbone", "staging")}
    places |= {folder / "versions" / f"{version.number:06d}.json" for version in model.log()}
    places |= {folder / "blobs" / name[:2] / f"{name}.safetensors" for name in needed}
    found = [path for path in folder.rglob("*") if path not in places and not (path.is_dir() and path.parent.name == "blobs")]
    return sorted(str(path.relative_to(folder)) for path in found if (folder / "backbone") not in path.parents)


# What runs in a child


def _live(order: Mapping[str, Any], out: int) -> None:
    """Do the operations of an order, and tell of each when it begins and when it is done, or why it was refused."""

    def say(**facts: Any) -> None:
        os.write(out, json.dumps(facts).encode() + b"\n")

    gc.disable()
    signal.alarm(LONGEST_LIFE)
    if "serve" in order:
        _serve(**order["serve"])
        return
    model = Model.open(order["folder"], tell=lambda sentence: say(told=sentence))
    if "die" in order:
        _die_at(order["die"])
    if "die_in_file" in order:
        _die_in_file(order["die_in_file"])
    for number, operation in enumerate(order["operations"]):
        say(begun=number)
        start = time.monotonic()
        try:
            perform(model, operation)
        except LatewoodError as error:
            say(refused=number, kind=type(error).__name__, sentence=str(error))
        else:
            say(done=number, seconds=time.monotonic() - start)
    if order.get("stay"):
        signal.pause()


def _serve(folder: str, port: int, token: str) -> None:
    from latewood.serve import serve

    os.environ["LATEWOOD_TOKEN"] = token
    serve(folder, port=port)


def _die_at(nth: int) -> None:
    """Make the ``nth`` call that changes a folder, or would flush a file, one that this process does not survive."""
    left = nth

    def call() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(DIED)

    def audit(event: str, _: tuple[Any, ...]) -> None:
        if event in _CHANGES:
            call()

    # What a process has written survives its death, so nothing has to reach the disk here.
    os.fsync = lambda fd: call()
    sys.addaudithook(audit)


def _die_in_file(size: int) -> None:
    """Let the system end this process, as suddenly as by SIGKILL, while it writes the first file of more bytes than these."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_files(size)


def _fork(order: Mapping[str, Any]) -> int:
    out = os.open(order["out"], os.O_WRONLY)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _live(order, out)
            code = 0
        except BaseException as error:
            os.write(out, json.dumps({"defect": repr(error)}).encode() + b"\n")
        finally:
            os._exit(code)
    os.close(out)
    return pid


def _answer(request: Mapping[str, Any]) -> int:
    if "wait" in request:
        return os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
    return _fork(request)


def main() -> None:
    """Answer requests: to fork a child, with its number; to wait for one, with what ended it."""
    import tempfile

    import latewood.serve.app  # noqa: F401 - what children need is imported once

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        model = make(Path(place) / "model")
        operations: list[Operation] = [
            {"verb": "learn", "source": "a", "rows": {"classes": [0, 1, 2], "count": 40, "seed": 0}},
            {"verb": "learn", "source": "b", "rows": {"classes": [2], "count": 20, "seed": 1}},
            {"verb": "forget", "what": {"name": NAMES[2]}},
        ]
        for operation in operations:
            perform(model, operation)
        model.predict(probe())
    gc.freeze()  # or each child would copy all that it only looks at
    say: Callable[[Any], None] = functools.partial(print, flush=True)
    say("ready")
    for line in sys.stdin:
        say(_answer(json.loads(line)))


if __name__ == "__main__":
    main()
