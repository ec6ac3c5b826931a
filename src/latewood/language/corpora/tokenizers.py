"""From text to tokens and back: bytes, or the tokenizer of any checkpoint in the format of the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from latewood.core.errors import ConfigurationError
from latewood.parts.pretrained import first_line, quiet

#: What a tokenizer consists of; nothing else of a checkpoint is downloaded.
_FILES = (
    *("added_tokens.json", "config.json", "merges.txt", "special_tokens_map.json", "tokenizer.json"),
    *("tokenizer_config.json", "vocab.json", "vocab.txt", "*.model"),
)


class Encoded(NamedTuple):
    """The tokens of one text, int32 ``(n,)``; ``bytes_before(k)`` is how many of its UTF-8 bytes the first ``k`` stand for."""

    tokens: NDArray[np.int32]
    bytes_before: Callable[[int], int]


@runtime_checkable
class Tokenizer(Protocol):
    """Text to tokens and back.

    ``size`` is the number of different tokens, ``end`` the one that ends a text, which no text contains;
    ``fingerprint`` changes with the tokens that a text gets.
    """

    @property
    def name(self) -> str:
        """The name that :func:`load_tokenizer` knows it by."""
        ...

    @property
    def size(self) -> int:
        """The number of different tokens: every token lies in ``range(size)``."""
        ...

    @property
    def end(self) -> int:
        """The token that ends a text."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any special ones around them."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of many texts; much faster than one after another."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that tokens stand for; the end of a text has no characters."""
        ...


class ByteTokenizer:
    """The 256 values of UTF-8 bytes, and 256 for the end of a text: knows every text, needs no file.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("né"), tokenizer.decode([110, 195, 169, 256])
    ([110, 195, 169], 'né')
    """

    name = "bytes"
    size = 257
    end = 256
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text."""
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """The UTF-8 bytes of each text."""
        return [Encoded(np.frombuffer(text.encode(), np.uint8).astype(np.int32), int) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these bytes; where they are no UTF-8, such as half a character, stands U+FFFD."""
        return bytes(token for token in tokens if token != self.end).decode(errors="replace")


class PretrainedTokenizer:
    """The tokenizer of a checkpoint; :func:`load_tokenizer` makes it. ``backend`` is that of the library tokenizers."""

    def __init__(self, name: str, backend: Any, end: int) -> None:
        # What a file says of cutting and padding is meant for batches of short texts.
        backend.no_truncation()
        backend.no_padding()
        # A text that speaks of "<|endoftext|>" does not end there.
        backend.encode_special_tokens = True
        self.name, self.backend, self.end = name, backend, end
        self.size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.fingerprint = hashlib.blake2b(f"{end} {backend.to_str()}".encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any special ones around them."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of each text, on all cores."""
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            Encoded(np.array(encoding.ids, np.int32), _Places(text, encoding).bytes_before)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that tokens stand for, without special ones."""
        return str(self.backend.decode(list(tokens), skip_special_tokens=True))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files from which :func:`load_tokenizer` loads it again, beside those of a model."""
        from transformers import PreTrainedTokenizerFast

        end = self.backend.id_to_token(self.end)
        PreTrainedTokenizerFast(tokenizer_object=self.backend, eos_token=end).save_pretrained(folder)  # type: ignore[no-untyped-call]


class _Places:
    """Where tokens end in a text, in bytes. Asked for growing numbers of tokens, it reads each character once."""

    def __init__(self, text: str, encoding: Any) -> None:
        self._text, self._encoding = text, encoding
        self._characters = self._bytes = 0

    def bytes_before(self, count: int) -> int:
        tokens = len(self._encoding)
        end = len(self._text) if count >= tokens else self._encoding.token_to_chars(count - 1)[1] if count else 0
        if end < self._characters:
            self._characters = self._bytes = 0
        self._bytes += len(self._text[self._characters : end].encode())
        self._characters = end
        return self._bytes


def load_tokenizer(name: str | Tokenizer = "bytes") -> Tokenizer:
    """The tokenizer called ``name``: ``bytes``, a checkpoint of the Hugging Face hub (``gpt2``,
    ``HuggingFaceTB/SmolLM2-135M``) or a folder in the hub's format; one that is loaded stays as it is.

    Only its own files are read, and no code of a checkpoint is ever run. The token that ends a text is the checkpoint's
    own (``eos_token``, else ``sep_token``). Errors: :class:`~latewood.core.errors.ConfigurationError` if it can't be
    found or read, or has no such token.

    >>> load_tokenizer("bytes").size
    257
    """
    if not isinstance(name, str):
        return name
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    loaded = _loaded(name)
    if not loaded.is_fast:
        raise ConfigurationError(
            f"{name!r} has no tokenizer that the library tokenizers can run; choose one with tokenizer.json."
        )
    # Where the files are missing, transformers makes one that knows no word.
    if len(loaded) <= len(loaded.all_special_ids):
        raise ConfigurationError(f"{name!r} has no tokenizer; right would be a checkpoint or folder with tokenizer.json.")
    end = loaded.eos_token_id if loaded.eos_token_id is not None else loaded.sep_token_id
    if end is None:
        raise ConfigurationError(f"The tokenizer {name!r} has no token that ends a text; set eos_token in its settings.")
    return PretrainedTokenizer(name, loaded.backend_tokenizer, end)


def _loaded(name: str) -> Any:
    from transformers import AutoTokenizer

    expected = "right would be 'bytes', a name such as 'gpt2', or a folder with tokenizer.json"
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise ConfigurationError(f"There is no folder {name!r}; {expected}.")
        folder = _downloaded(name, expected)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of a damaged file the library tokenizers says so with a bare Exception
        raise ConfigurationError(f"The tokenizer {name!r} can't be loaded ({first_line(error)}); {expected}.") from None


def _downloaded(name: str, expected: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"There is no folder {name!r}, and no tokenizer of that name can be downloaded ({first_line(error)}); {expected}."
        ) from None
