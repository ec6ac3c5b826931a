"""Backbones for text: each maps the column ``text`` to features, with the tokenizer that belongs to it."""

from latewood.core.data import Data
from latewood.core.learner import Learner
from latewood.language.nets.sentence import sentence

__all__ = ["PRETRAINED", "default_backbone", "sentence"]

#: The net that takes the name of a checkpoint on a hub, or a folder in a hub's form.
PRETRAINED = "sentence"


def default_backbone(learner: type[Learner], example: Data) -> str:
    """The net for a learner that is not told which: a pretrained encoder of sentences, since text needs one."""
    return "sentence"
