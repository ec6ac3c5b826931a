"""Networks for text: encoders of the column ``text`` with their tokenizers, and language models of ``tokens``."""

from latewood.core.data import Data
from latewood.core.learner import Learner
from latewood.language.nets.causal import causal
from latewood.language.nets.sentence import sentence

__all__ = ["causal", "default_backbone", "pretrained", "sentence"]


def pretrained(example: Data) -> str:
    """The net that takes the name of a checkpoint on a hub, or a folder in a hub's form."""
    return "causal" if "tokens" in example else "sentence"


def default_backbone(learner: type[Learner], example: Data) -> str:
    """The net for a learner that is not told which: for tokens a small language model, for texts an encoder of sentences."""
    return "causal" if "tokens" in example else "sentence"
