"""Growing in depth: copies that change nothing at first, and the layers that matter least."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.language.expansion import bypassed, copies, expand, layer_importance, layers, least_important, silence, train_only
from latewood.language.nets.causal import CausalLM, causal
from latewood.parts.unit_rates import adapt_unit_rates, unit_groups

KINDS = ["llama", "qwen3", "qwen3 window", "gpt2", "gpt_neox", "gpt_neox serial"]
OUTPUTS = ("o_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h")


def make(kind: str, seed: int = 0) -> Any:
    """Six layers of width 32, whose weights are large enough for each to matter."""
    import transformers as t

    torch.manual_seed(seed)
    common = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "initializer_range": 0.2}
    inner = {"intermediate_size": 48, "max_position_embeddings": 128}
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    network: Any
    if kind == "llama":
        network = t.LlamaForCausalLM(t.LlamaConfig(**common, **inner, **none, attention_bias=True, mlp_bias=True))
    elif kind == "qwen3":
        network = t.Qwen3ForCausalLM(t.Qwen3Config(**common, **inner, **none, num_key_value_heads=2, head_dim=8))
    elif kind == "qwen3 window":
        window = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3, "tie_word_embeddings": True}
        network = t.Qwen3ForCausalLM(t.Qwen3Config(**common, **inner, **none, **window, num_key_value_heads=2, head_dim=8))
    elif kind == "gpt2":
        sizes = {"vocab_size": 61, "n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
        network = t.GPT2LMHeadModel(t.GPT2Config(**sizes, **none))
    else:
        network = t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**common, **inner, **none, use_parallel_residual=kind == "gpt_neox"))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):  # they start at zero, where forgetting one would not show
                parameter.normal_(std=0.1)
    return network.eval()


def tokens(rows: int = 3, length: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(network: Any, inputs: Tensor | None = None) -> Tensor:
    found: Tensor = network(input_ids=tokens() if inputs is None else inputs, use_cache=False).logits
    return found


@torch.no_grad()
def logits_by_cache(network: Any) -> Tensor:
    """Token by token."""
    inputs, cache, parts = tokens(), None, []
    for column in range(inputs.shape[1]):
        out = network(input_ids=inputs[:, column : column + 1], past_key_values=cache, use_cache=True)
        cache, parts = out.past_key_values, [*parts, out.logits]
    return torch.cat(parts, 1)


def generated(network: Any) -> Tensor:
    found: Tensor = network.generate(tokens(2, 5), max_new_tokens=12, do_sample=False, pad_token_id=0, use_cache=True)
    return found


def loss(network: Any, inputs: Tensor) -> Tensor:
    found: Tensor = network(input_ids=inputs, labels=inputs, use_cache=False).loss
    return found


@torch.no_grad()
def probe_loss(network: Any) -> float:
    return float(loss(network, tokens(seed=7)))


def train(network: Any, positions: list[int], steps: int = 5) -> None:
    optimizer = torch.optim.AdamW(train_only(network, positions), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        loss(network, tokens(seed=step)).backward()
        optimizer.step()


def is_output(name: str) -> bool:
    return any(part in OUTPUTS for part in name.split("."))


# Copies that change nothing


@pytest.mark.parametrize("positions", [[5], [0, 3], [1, 2, 5]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_expanded_and_untrained_a_model_says_what_it_said_with_and_without_cache(kind: str, positions: list[int]) -> None:
    network = make(kind)
    before, by_cache, words = logits(network), logits_by_cache(network), generated(network)
    found = expand(network, positions)
    assert len(layers(network)) == network.config.num_hidden_layers == 6 + len(positions)
    assert found == copies(network) == [position + i + 1 for i, position in enumerate(positions)]
    torch.testing.assert_close(logits(network), before, atol=1e-6, rtol=0)
    torch.testing.assert_close(logits_by_cache(network), by_cache, atol=1e-6, rtol=0)
    torch.testing.assert_close(by_cache, before, atol=1e-4, rtol=0)
    assert torch.equal(generated(network), words)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_equals_its_layer_but_for_the_output_projections_and_has_a_place_in_the_cache(kind: str) -> None:
    network = make(kind)
    expand(network, [1, 4])
    stack = layers(network)
    for position in (2, 6):
        for (name, copied), original in zip(stack[position].named_parameters(), stack[position - 1].parameters(), strict=True):
            assert copied.data_ptr() != original.data_ptr()
            assert not copied.any() if is_output(name) else torch.equal(copied, original), name
    for position, layer in enumerate(stack):
        assert {module.layer_idx for module in layer.modules() if hasattr(module, "layer_idx")} == {position}
        assert {id(module.config) for module in layer.modules() if hasattr(module, "config")} <= {id(network.config)}


def test_lists_with_an_entry_for_each_layer_grow_with_them() -> None:
    network = make("qwen3 window")
    assert network.config.layer_types == ["full_attention"] * 3 + ["sliding_attention"] * 3
    expand(network, [2, 3])
    assert network.config.layer_types == ["full_attention"] * 4 + ["sliding_attention"] * 4


def test_hidden_states_of_all_layers_can_still_be_asked_for() -> None:
    network = make("llama")
    inputs = tokens()
    assert len(network(input_ids=inputs, output_hidden_states=True).hidden_states) == 7
    expand(network, [2, 5])
    states = network(input_ids=inputs, output_hidden_states=True).hidden_states
    assert len(states) == 9
    assert torch.equal(states[3], states[4])


def test_an_expanded_model_can_be_expanded_again() -> None:
    network = make("llama")
    before = logits(network)
    assert expand(network, [1, 4]) == [2, 6]
    train(network, [2, 6])
    trained = logits(network)
    assert not torch.allclose(trained, before, atol=1e-3)
    assert expand(network, [0, 4]) == [1, 6]
    assert copies(network) == [1, 3, 6, 8]
    torch.testing.assert_close(logits(network), trained, atol=1e-6, rtol=0)
    with bypassed(network, copies(network)):
        torch.testing.assert_close(logits(network), before, atol=1e-6, rtol=0)


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_training_the_original_is_untouched_and_comes_back_when_the_copies_are_silenced(kind: str) -> None:
    network = make(kind)
    before = logits(network)
    originals = {id(parameter): parameter.detach().clone() for parameter in network.parameters()}
    positions = expand(network, [1, 4])
    train(network, positions)
    assert (logits(network) - before).abs().max() > 1e-2
    for parameter in network.parameters():
        if id(parameter) in originals:
            assert torch.equal(parameter, originals[id(parameter)])
    with bypassed(network, positions):
        torch.testing.assert_close(logits(network), before, atol=1e-6, rtol=0)
        torch.testing.assert_close(logits_by_cache(network), before, atol=1e-4, rtol=0)
    assert (logits(network) - before).abs().max() > 1e-2
    for position in positions:
        silence(layers(network)[position])
    torch.testing.assert_close(logits(network), before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_gradient_reaches_only_the_output_projections_of_the_copies(kind: str) -> None:
    network = make(kind)
    positions = expand(network, [1, 4])
    train_only(network, positions)
    loss(network, tokens()).backward()
    for position, layer in enumerate(layers(network)):
        for name, parameter in layer.named_parameters():
            if position not in positions:
                assert parameter.grad is None
            elif is_output(name):
                assert parameter.grad is not None
                assert parameter.grad.any(), name
            else:
                assert parameter.grad is None or not parameter.grad.any(), name
    rest = {id(p) for p in network.parameters()} - {id(p) for p in layers(network).parameters()}
    assert all(p.grad is None for p in network.parameters() if id(p) in rest)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_as_many_layers_as_were_copied(kind: str) -> None:
    network = make(kind)
    one = sum(p.numel() for p in layers(network)[0].parameters())
    trainable = train_only(network, expand(network, [0, 2, 5]))
    assert sum(p.numel() for p in trainable) == 3 * one
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 3 * one


def test_without_a_copy_nothing_trains_and_the_code_says_so() -> None:
    network = make("llama")
    before = logits(network)
    assert expand(network, []) == copies(network) == []
    assert torch.equal(logits(network), before)
    with pytest.raises(ConfigurationError, match="nothing to train"):
        train_only(network, copies(network))


def test_units_of_the_copies_are_rated_on_a_probe_and_the_first_step_alone_says_nothing() -> None:
    network = make("qwen3")
    train_only(network, expand(network, [3, 5]))
    optimizer = torch.optim.AdamW(unit_groups(network), lr=1e-3)
    probe = [tokens(seed=90), tokens(seed=91)]
    first = adapt_unit_rates(network, optimizer, lambda batch: loss(network, batch), probe)
    assert set(first.values()) == {1.0}
    for step in range(5):
        optimizer.zero_grad()
        loss(network, tokens(seed=step)).backward()
        optimizer.step()
    later = adapt_unit_rates(network, optimizer, lambda batch: loss(network, batch), probe)
    assert len(later) == 2 * 11  # q, k, v, o, gate, up, down, two norms, and norms of queries and keys
    assert sum(group["norm"] for group in optimizer.param_groups) == 2 * 4
    assert min(later.values()) == 0
    assert max(later.values()) == 2


def test_at_uniform_positions_and_equal_rates_it_is_block_expansion() -> None:
    """LLaMA Pro: a copy with silent outputs after every second layer, trained alone, all at one rate."""
    from transformers import LlamaForCausalLM

    network = make("llama")
    positions = expand(network, [1, 3, 5])
    deeper = make("llama").config
    deeper.num_hidden_layers = 9
    by_hand = LlamaForCausalLM(deeper).eval()
    source = make("llama").state_dict()
    state = {name: value for name, value in source.items() if ".layers." not in name}
    for target, origin in enumerate((0, 1, 1, 2, 3, 3, 4, 5, 5)):
        for name, value in source.items():
            if f".layers.{origin}." in name:
                silent = target in (2, 5, 8) and is_output(name)
                state[name.replace(f".layers.{origin}.", f".layers.{target}.")] = torch.zeros_like(value) if silent else value
    by_hand.load_state_dict(state)
    train(network, positions)
    for name, parameter in by_hand.named_parameters():
        parameter.requires_grad_(any(f".layers.{p}." in name for p in (2, 5, 8)))
    optimizer = torch.optim.AdamW([p for p in by_hand.parameters() if p.requires_grad], lr=1e-2)
    for step in range(5):
        optimizer.zero_grad()
        loss(by_hand, tokens(seed=step)).backward()
        optimizer.step()
    for ours, theirs in zip(network.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# Selection


@pytest.mark.parametrize("kind", KINDS)
def test_bypassing_a_layer_is_as_if_all_its_weights_were_zero(kind: str) -> None:
    network = make(kind)
    importance = layer_importance(network, lambda: probe_loss(network))
    base = probe_loss(network)
    for position, layer in enumerate(layers(network)):
        held = [parameter.detach().clone() for parameter in layer.parameters()]
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        assert importance[position] == pytest.approx(probe_loss(network) - base, abs=1e-5)
        assert abs(importance[position]) > 1e-4
        with torch.no_grad():
            for parameter, value in zip(layer.parameters(), held, strict=True):
                parameter.copy_(value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_does_nothing_matters_exactly_nothing_and_is_found(kind: str) -> None:
    network = make(kind)
    with torch.no_grad():  # each other layer matters: without it the loss on what it leads to rises
        best = logits(network, tokens(seed=7)).argmax(-1)
    silence(layers(network)[2])
    importance = layer_importance(network, lambda: float(nn.functional.cross_entropy(
        network(input_ids=tokens(seed=7), use_cache=False).logits.flatten(0, 1), best.flatten()
    )))  # fmt: skip
    assert importance[2] == 0
    assert min(importance) <= 0
    assert sorted(range(6), key=lambda position: abs(importance[position]))[0] == 2


def test_a_planted_layer_that_does_nothing_is_the_first_to_be_chosen_in_a_model_that_has_learned() -> None:
    network = make("llama")
    silence(layers(network)[2])
    stack = [p for position, layer in enumerate(layers(network)) if position != 2 for p in layer.parameters()]
    optimizer = torch.optim.AdamW(stack, lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(network, tokens(seed=7)).backward()
        optimizer.step()
    importance = layer_importance(network, lambda: probe_loss(network))
    assert importance[2] == 0
    assert least_important(importance, 1) == [2]


def test_the_chosen_layers_have_the_smallest_sum_of_all_choices() -> None:
    network = make("llama")
    importance = layer_importance(network, lambda: probe_loss(network))
    for count in range(7):
        chosen = least_important(importance, count)
        sums = {choice: sum(importance[p] for p in choice) for choice in combinations(range(6), count)}
        assert sum(importance[p] for p in chosen) == pytest.approx(min(sums.values()))
        assert chosen == sorted(set(chosen))
        assert len(chosen) == count


def test_of_equally_important_layers_the_deeper_is_chosen() -> None:
    assert least_important([1.0, 0.5, 0.5, 0.5, 2.0], 2) == [2, 3]
    with pytest.raises(ConfigurationError, match="Of 2 layers 3 can't be chosen"):
        least_important([1.0, 2.0], 3)


def test_measuring_leaves_no_hook_and_no_other_mode_behind_even_if_it_fails() -> None:
    network = make("llama").train()
    layers(network)[1].eval()
    modes, before = [module.training for module in network.modules()], logits(network)

    def failing() -> float:
        raise RuntimeError("no such file")

    layer_importance(network, lambda: probe_loss(network))
    with pytest.raises(RuntimeError, match="no such file"):
        layer_importance(network, failing)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(logits(network), before)
    assert not any(layer._forward_hooks for layer in layers(make("llama")))


# Saving


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_saved_in_the_middle_of_training_knows_its_copies(kind: str, tmp_path: Path) -> None:
    network = make(kind)
    positions = expand(network, [1, 4])
    train(network, positions)
    assert all(parameter.any() for p in positions for n, parameter in layers(network)[p].named_parameters() if is_output(n))
    CausalLM(network, {}).save(tmp_path / "model")
    again = causal(Data(tokens=tokens()), name=str(tmp_path / "model")).network
    again.eval()
    assert copies(again) == positions == [2, 6]
    assert torch.equal(logits(again), logits(network))
    train(network, positions)
    train(again, copies(again))
    assert torch.equal(logits(again), logits(network))


def test_a_state_is_taken_up_by_a_base_expanded_at_the_same_positions() -> None:
    network = make("llama")
    train(network, expand(network, [1, 4]))
    other = make("llama", seed=1)
    expand(other, [1, 4])
    other.load_state_dict(network.state_dict())
    assert torch.equal(logits(other), logits(network))


# What does not fit


@pytest.mark.parametrize(("positions", "words"), [([6], "no layer 6"), ([-1], "no layer -1"), ([2, 2], "copied once")])
def test_positions_that_make_no_sense_are_refused_and_the_model_stays(positions: list[int], words: str) -> None:
    network = make("llama")
    with pytest.raises(ConfigurationError, match=words):
        expand(network, positions)
    assert len(layers(network)) == network.config.num_hidden_layers == 6
    assert copies(network) == []


def test_a_model_whose_layers_scale_the_residual_stream_is_refused_and_stays_as_it_was() -> None:
    network = make("gpt2")
    for layer in layers(network):
        layer.register_forward_hook(lambda module, inputs, output: 0.5 * output)
    refused(network, r"would change what it computes; right")


def test_a_model_whose_layers_know_their_number_is_refused_though_only_a_loaded_one_would_show_it() -> None:
    from transformers import GPT2LMHeadModel

    config = make("gpt2").config
    config.scale_attn_by_inverse_layer_idx = True
    refused(GPT2LMHeadModel(config).eval(), "would change what it computes once it is loaded")


def refused(network: Any, words: str) -> None:
    before, spoken = logits(network), generated(network)
    with pytest.raises(ConfigurationError, match=words):
        expand(network, [1, 4])
    assert copies(network) == []
    assert len(layers(network)) == network.config.num_hidden_layers == 6
    assert torch.equal(logits(network), before)
    assert torch.equal(generated(network), spoken)


def test_expanding_draws_no_chance() -> None:
    network = make("llama")
    before = torch.get_rng_state()
    expand(network, [1, 4])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_without_a_stack_of_layers_is_told() -> None:
    with pytest.raises(ConfigurationError, match="Linear shows no stack of layers"):
        layers(nn.Linear(2, 2))
