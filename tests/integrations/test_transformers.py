# SPDX-License-Identifier: Apache-2.0
"""Hugging Face models on fgkernels' operators against themselves on transformers' own PyTorch path."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="transformers isn't installed (extra [peers])")

from fgkernels.integrations.transformers import patch_mamba  # noqa: E402

SMALL = dict(vocab_size=50, hidden_size=24, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
JAMBA = dict(
    intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, mamba_d_state=4, mamba_dt_rank=3,
    attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, num_experts=2,
)  # fmt: skip
CONFIGS = {
    "mamba": lambda: transformers.MambaConfig(**SMALL, state_size=4),
    "mamba-gelu": lambda: transformers.MambaConfig(
        **SMALL, state_size=4, hidden_act="gelu", use_conv_bias=False, use_bias=True, conv_kernel=3
    ),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(**SMALL, state_size=4),
    "jamba": lambda: transformers.JambaConfig(**SMALL, **JAMBA),
    "mamba2": lambda: transformers.Mamba2Config(
        **SMALL, state_size=8, head_dim=8, num_heads=6, n_groups=2, chunk_size=4
    ),
    "mamba2-limits": lambda: transformers.Mamba2Config(
        **SMALL, state_size=8, head_dim=8, num_heads=6, n_groups=1, chunk_size=4, time_step_limit=(0.0, 0.05)
    ),
}  # fmt: skip
LENGTH = 11


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A small model, its weights large enough that states, B and C matter for the logits."""
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and "A_log" not in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def tokens(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 50, (batch, length))


def left_padding(batch: int = 2, length: int = LENGTH) -> Tensor:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :4] = 0
    return mask


def decode(model: nn.Module, ids: Tensor, prompt: int, mask: Tensor | None = None) -> Tensor:
    """Logits of a prompt and then of each further token on its own."""
    rows, cache = [], None
    growing = model.config.model_type in ("jamba", "mamba2")  # the others want the mask of the new tokens only
    for start, end in [(0, prompt), *((t, t + 1) for t in range(prompt, ids.shape[1]))]:
        options = {} if mask is None else {"attention_mask": mask[:, 0 if growing else start : end]}
        output = model(ids[:, start:end], cache=cache, use_cache=True, **options)
        rows.append(output.logits)
        cache = output.cache
    return torch.cat(rows, 1)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_logits(backend: str, model: nn.Module, padded: bool) -> None:
    ids, mask = tokens(), left_padding() if padded else None
    before = model(ids, attention_mask=mask).logits
    with patch_mamba(model):
        after = model(ids, attention_mask=mask).logits
    assert not torch.equal(after, before), "still transformers' own path"
    torch.testing.assert_close(after, before)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 6])
def test_decoding(backend: str, model: nn.Module, prompt: int) -> None:
    ids = tokens()
    before = decode(model, ids, prompt)
    with patch_mamba(model):
        torch.testing.assert_close(decode(model, ids, prompt), before)


@torch.no_grad()
def test_decoding_after_padding(backend: str, model: nn.Module) -> None:
    ids, mask = tokens(), left_padding()
    before = decode(model, ids, 6, mask)
    with patch_mamba(model):
        torch.testing.assert_close(decode(model, ids, 6, mask), before)


@torch.no_grad()
def test_generate(backend: str, model: nn.Module) -> None:
    """Greedy and beam search, which reorders the cache, choose the same tokens, with a padded batch."""
    ids, mask = tokens(), left_padding()
    for beams in (1, 2):
        options = dict(attention_mask=mask, max_new_tokens=5, num_beams=beams, do_sample=False)
        before = model.generate(ids, **options)
        with patch_mamba(model):
            assert torch.equal(model.generate(ids, **options), before)


@torch.no_grad()
def test_several_tokens_on_a_cache_are_one_call(backend: str, model: nn.Module) -> None:
    ids = tokens()
    with patch_mamba(model):
        whole = model(ids).logits
        first = model(ids[:, :4], use_cache=True)
        rest = model(ids[:, 4:], cache=first.cache, use_cache=True)
        last = model(ids[:, :1], cache=rest.cache, use_cache=True).logits
        expected = model(torch.cat([ids, ids[:, :1]], 1)).logits[:, -1:]
    if model.config.model_type != "mamba2" or model.config.time_step_limit[1] > 1:
        torch.testing.assert_close(last, expected)  # while decoding, transformers doesn't limit time steps
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole)


@pytest.mark.parametrize("padded", [False, True])
def test_training(backend: str, model: nn.Module, padded: bool) -> None:
    ids, mask = tokens(), left_padding() if padded else None
    model.train()

    def gradients() -> tuple[Tensor, list[Tensor]]:
        loss = model(ids, attention_mask=mask, labels=ids).loss
        return loss, torch.autograd.grad(loss, model.parameters(), allow_unused=True)

    loss_before, before = gradients()
    with patch_mamba(model):
        loss_after, after = gradients()
    torch.testing.assert_close(loss_after, loss_before)
    for (name, _), value, expected in zip(model.named_parameters(), after, before, strict=True):
        if expected is None:  # an expert that no token was routed to
            assert value is None, name
            continue
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            value, expected, rtol=1e-4, atol=1e-5 * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_gradients_with_a_cache(backend: str, model: nn.Module) -> None:
    """A forward pass in grad mode that goes on from a cache can be differentiated, also token by token."""
    ids = tokens()
    with patch_mamba(model):
        with torch.no_grad():
            cache = model(ids[:, :5], use_cache=True).cache
        logits = [model(ids[:, 5:8], cache=cache, use_cache=True).logits]
        logits += [model(ids[:, 8:9], cache=cache, use_cache=True).logits]
        parameter = model.get_input_embeddings().weight
        (gradient,) = torch.autograd.grad(torch.cat(logits, 1).square().sum(), parameter)
        with torch.no_grad():
            expected = model(ids[:, :9]).logits[:, 5:]
    torch.testing.assert_close(torch.cat(logits, 1), expected)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@torch.no_grad()
def test_bfloat16_is_not_worse(backend: str, model: nn.Module) -> None:
    ids = tokens()
    truth = model(ids).logits
    model.to(torch.bfloat16)
    before = model(ids).logits
    with patch_mamba(model):
        after = model(ids).logits
        assert decode(model, ids, 4).isfinite().all()
    assert after.dtype == before.dtype
    assert (after - truth).abs().max() <= 2 * (before - truth).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_compile(name: str) -> None:
    """A patched model is one graph, prefill and decoding on a cache alike."""
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    ids = tokens()
    with patch_mamba(model):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
        cache = model(ids, use_cache=True).cache
        twin = copy.deepcopy(cache)
        step = compiled(ids[:, :1], cache=twin, use_cache=True).logits
        torch.testing.assert_close(step, model(ids[:, :1], cache=cache, use_cache=True).logits)
        for layer, other in zip(cache.layers, twin.layers, strict=True):
            torch.testing.assert_close(layer.recurrent_states[0], other.recurrent_states[0])


@torch.no_grad()
def test_undo(model: nn.Module) -> None:
    ids = tokens()
    before = model(ids).logits
    patch = patch_mamba(model)
    assert not torch.equal(model(ids).logits, before)
    patch.undo()
    assert torch.equal(model(ids).logits, before)
    patch.undo()
    assert torch.equal(model(ids).logits, before)


@torch.no_grad()
def test_every_model(model: nn.Module) -> None:
    """Without a model the classes are patched: models made before and within the context compute alike."""
    ids, other = tokens(), copy.deepcopy(model)
    before = model(ids).logits
    with patch_mamba():
        after = model(ids).logits
        assert torch.equal(other(ids).logits, after)
        with patch_mamba(model):
            assert torch.equal(model(ids).logits, after)
    with patch_mamba(other):
        assert torch.equal(other(ids).logits, after)
        assert torch.equal(model(ids).logits, before), "one model's patch reached another"
    assert not torch.equal(after, before)
    assert torch.equal(model(ids).logits, before)


@torch.no_grad()
def test_copies_of_a_patched_model(model: nn.Module) -> None:
    ids = tokens()
    before = model(ids).logits
    with patch_mamba(model):
        after = model(ids).logits
        twin = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.add_(1)
        assert torch.equal(twin(ids).logits, after), "the copy computes with the original's weights"
        stored = pickle.dumps(twin)
    torch.testing.assert_close(pickle.loads(stored)(ids).logits, before)


@torch.no_grad()
def test_accelerate_hooks_stay(model: nn.Module) -> None:
    """accelerate keeps a hooked module's forward as `_old_forward`; hooks of conv1d and dt_proj are fired by hand."""
    fired, ids = [], tokens()
    before = model(ids).logits
    mixers = [module for module in model.modules() if type(module).__name__.endswith("Mixer")]
    for mixer in mixers:
        mixer._old_forward = mixer.forward
        mixer.forward = lambda *args, mixer=mixer, **kwargs: (
            fired.append("mixer") or mixer._old_forward(*args, **kwargs)
        )
        mixer.conv1d._hf_hook = SimpleNamespace(
            pre_forward=lambda module: fired.append("conv1d"), post_forward=lambda module, output: None
        )
    with patch_mamba(model):
        after = model(ids).logits
    torch.testing.assert_close(after, before)
    assert not torch.equal(after, before)
    assert fired == ["mixer", "conv1d"] * len(mixers)


def test_errors(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="model: expected a module with a mixer among MambaMixer, .*, got a Linear"):
        patch_mamba(nn.Linear(2, 2))
    if model.config.model_type not in ("mamba", "falcon_mamba"):  # these two hand the caller's mask on as it is
        return
    with patch_mamba(model), pytest.raises(ValueError, match=r"attention_mask: expected \(B, L\) = \(2, 11\) like"):
        model(tokens(), attention_mask=torch.ones(2, 12))


def test_packed_sequences() -> None:
    """Mamba-2 keeps packed sequences apart by seq_idx, which transformers' own path cannot; Mamba refuses."""
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["mamba2"]())
    ids = tokens(1)
    seq_idx = torch.tensor([[0] * 5 + [1] * 6], dtype=torch.int32)
    mixer = model.backbone.layers[0].mixer
    states = torch.randn(1, LENGTH, 24)
    with patch_mamba(model), torch.no_grad():
        packed = mixer(states, seq_idx=seq_idx)
        torch.testing.assert_close(packed, torch.cat([mixer(states[:, :5]), mixer(states[:, 5:])], 1))
        with pytest.raises(ValueError, match="cu_seqlens"):
            mixer(states, cu_seqlens=torch.tensor([0, 5, 11]))
    mamba = transformers.AutoModelForCausalLM.from_config(CONFIGS["mamba"]())
    with patch_mamba(mamba), pytest.raises(ValueError, match="seq_idx: expected None"):
        mamba.backbone.layers[0].mixer(states, seq_idx=seq_idx)
    assert ids.shape == seq_idx.shape


def test_nothing_happens_on_import() -> None:
    """Importing the module neither imports transformers nor patches it."""
    program = (
        "import sys, fgkernels\n"
        "assert callable(fgkernels.integrations.transformers.patch_mamba)\n"
        "assert 'transformers' not in sys.modules\n"
        "from transformers.models.mamba.modeling_mamba import MambaMixer\n"
        "assert MambaMixer.forward.__module__ == 'transformers.models.mamba.modeling_mamba'\n"
        "assert 'fgkernels' not in MambaMixer.forward.__code__.co_filename\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
