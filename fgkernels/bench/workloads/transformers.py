# SPDX-License-Identifier: Apache-2.0
"""A Mamba language model of Hugging Face transformers with random weights, as it is and on our operators.

Shapes in letters: B sequences of L tokens, E the model's width, V the vocabulary. transformers is imported late.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..registry import Call, Inputs, Shape

STATES, EXPAND, WIDTH = 16, 2, 4


def token_inputs(shape: Shape) -> Inputs:
    """L tokens and one more; the sizes of the model go with them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, shape["V"], (shape["B"], shape["L"] + 1), generator=generator)
    return {"ids": ids, "shape": dict(shape)}


@functools.lru_cache(maxsize=1)
def _weights(width: int, layers: int, vocabulary: int) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.MambaConfig(
        hidden_size=width, num_hidden_layers=layers, vocab_size=vocabulary, state_size=STATES, expand=EXPAND,
        conv_kernel=WIDTH,
    )  # fmt: skip
    return transformers.MambaForCausalLM(config).eval().requires_grad_(False)


def _model(inputs: Inputs) -> Any:
    """A model of the shape on the tokens' device; all models share their weights."""
    shape = inputs["shape"]
    model = _weights(shape["E"], shape["layers"], shape["V"])
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared).to(inputs["ids"].device)


def unpatched(inputs: Inputs) -> Any:
    """transformers' loop over positions."""
    return _model(inputs)


def with_mambapy(inputs: Inputs) -> Any:
    """transformers' other path without a GPU kernel: mambapy's parallel scan."""
    model = _model(inputs)
    for module in model.modules():
        if hasattr(module, "use_mambapy"):
            module.use_mambapy = True
    return model


def patched(inputs: Inputs) -> Any:
    """On our operators."""
    from fgkernels.integrations.transformers import patch_mamba

    model = _model(inputs)
    patch_mamba(model)
    return model


def prefill(make: Callable[[Inputs], Any]) -> Callable[[Inputs], Call]:
    """L tokens with a cache, the logits after the last one, as text generation starts."""

    def prepare(inputs: Inputs) -> Call:
        model, ids = make(inputs), inputs["ids"][:, :-1]
        return lambda: model(ids, use_cache=True, logits_to_keep=1).logits

    return prepare


def decode(make: Callable[[Inputs], Any]) -> Callable[[Inputs], Call]:
    """One token after L; the cache moves on from call to call."""

    def prepare(inputs: Inputs) -> Call:
        model = make(inputs)
        cache, ids = model(inputs["ids"][:, :-1], use_cache=True).cache, inputs["ids"][:, -1:]
        return lambda: model(ids, cache=cache, use_cache=True).logits

    return prepare


def expected(tokens: slice) -> Callable[[Inputs], tuple[Tensor, ...]]:
    """Logits after the last of these tokens in one call without a cache, with products in fp64."""

    def reference(inputs: Inputs) -> tuple[Tensor, ...]:
        shape = inputs["shape"]
        model = copy.deepcopy(_weights(shape["E"], shape["layers"], shape["V"])).double().to(inputs["ids"].device)
        return (model(inputs["ids"][:, tokens], use_cache=False, logits_to_keep=1).logits,)

    return reference


def layer_weights(shape: Shape) -> int:
    """Weights of a layer's matrix products: in, x, dt and out."""
    inner, rank = EXPAND * shape["E"], -(-shape["E"] // 16)
    return 2 * inner * shape["E"] + inner * (rank + 2 * STATES) + rank * inner + inner * shape["E"]


def prefill_flops(shape: Shape) -> int:
    """Matrix products, and 6 for each state of each position; the vocabulary once."""
    position = 2 * layer_weights(shape) + 6 * EXPAND * shape["E"] * STATES
    return shape["B"] * (shape["L"] * shape["layers"] * position + 2 * shape["E"] * shape["V"])


def decode_flops(shape: Shape) -> int:
    return prefill_flops({**shape, "L": 1})


def weight_bytes(shape: Shape) -> int:
    """Every weight of every matrix product once."""
    return 4 * (shape["layers"] * layer_weights(shape) + shape["E"] * shape["V"])
