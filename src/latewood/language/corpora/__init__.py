"""Text by name, as blocks of tokens: local files, source code, JSON lines, parquet, the hub; tokenized once.

``sources`` finds the text and divides it, ``tokenizers`` makes tokens of it, ``blocks`` packs and keeps them.
"""

from latewood.language.corpora.blocks import TokenBlocks, join, load_blocks, pack
from latewood.language.corpora.sources import HUB_NAMES, Corpus, load_corpus
from latewood.language.corpora.tokenizers import ByteTokenizer, Encoded, Tokenizer, load_tokenizer

__all__ = [
    "HUB_NAMES",
    "ByteTokenizer",
    "Corpus",
    "Encoded",
    "TokenBlocks",
    "Tokenizer",
    "join",
    "load_blocks",
    "load_corpus",
    "load_tokenizer",
    "pack",
]
