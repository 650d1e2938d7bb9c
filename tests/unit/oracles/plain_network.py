"""The network written a second time, for tests: formulas alone, nothing of ``megatron.model``.

Weights are a dictionary under our parameter names. Gradients are autograd's: no hand-written
backward pass, no kernel, no chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """What the formulas need to know beside the weights."""

    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 8
    vocab: int = 61
    rotary_dim: int = 0
    rotary_base: float = 10000.0
    frequencies: tuple[float, ...] = ()
    """Instead of those that follow from the base."""
    rotary_scale: float = 1.0
    """Multiplies cosines and sines."""
    first_position: int = 0
    qk_norm: str = "none"
    positions: str = "rotary"
    norm: str = "layernorm"
    norm_epsilon: float = 1e-5
    activation: str = "gelu"
    is_gated: bool = False
    is_parallel: bool = False
    has_one_norm: bool = False
    is_tied: bool = False
    z_loss: float = 0.0


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: x * (x > 0),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "identity": lambda x: x,
}


def losses(weights: Weights, net: Network, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The scalar to train on, z-loss included, and negative log-likelihoods (b, s)."""
    scores = logits(weights, net, tokens)
    normalizer = scores.exp().sum(-1).log()
    chosen = torch.stack([row[range(len(y)), y] for row, y in zip(scores, labels, strict=True)])
    likelihoods = normalizer - chosen
    return (likelihoods + net.z_loss * normalizer**2).mean(), likelihoods


def logits(weights: Weights, net: Network, tokens: Tensor) -> Tensor:
    """(b, s) tokens to (b, s, vocabulary) scores."""
    bottom = "tied_modules.embed" if net.is_tied else "0"
    table = weights[f"{bottom}.word_embeddings.weight"]
    hidden = table[tokens]
    used = slice(net.first_position, net.first_position + tokens.shape[1])
    if net.positions == "learned":
        hidden = hidden + weights[f"{bottom}.position_embeddings.weight"][used]
    if net.positions == "sinusoidal":
        hidden = hidden + _sinusoids(used.stop, hidden.shape[-1])[used]
    for index in range(2, net.layers + 2):
        hidden = _block(weights, net, f"{index}", hidden)
    hidden = _norm(weights, net, f"{net.layers + 3}.norm", hidden)
    top = table if net.is_tied else weights[f"{net.layers + 4}.final_linear.weight"]
    return hidden @ top[: net.vocab].T


def _block(weights: Weights, net: Network, name: str, hidden: Tensor) -> Tensor:
    normed = _norm(weights, net, f"{name}.input_layernorm", hidden)
    attention = _attention(weights, net, f"{name}.attention", normed)
    second = "input_layernorm" if net.has_one_norm else "post_attention_layernorm"
    if net.is_parallel:
        normed = _norm(weights, net, f"{name}.{second}", hidden)
        return hidden + attention + _mlp(weights, net, f"{name}.mlp", normed)
    hidden = hidden + attention
    return hidden + _mlp(
        weights, net, f"{name}.mlp", _norm(weights, net, f"{name}.{second}", hidden)
    )


def _attention(weights: Weights, net: Network, name: str, hidden: Tensor) -> Tensor:
    """One head at a time; the rows of a group are its queries, its key, its value."""
    fused = _linear(weights, f"{name}.query_key_value", hidden)
    queries = net.heads // net.kv_heads
    groups = fused.unflatten(-1, (net.kv_heads, queries + 2, net.head_dim))
    length = hidden.shape[1]
    hidden_from = torch.ones(length, length).triu(1).bool()
    if net.qk_norm == "neox":
        normed = [_norm_of_heads(weights, net, name, groups[:, :, :, i]) for i in (0, 1)]
        groups = torch.stack((*normed, groups[:, :, :, 2]), dim=3)
    outputs = []
    for head in range(net.heads):
        group = groups[:, :, head // queries]
        query, key, value = group[:, :, head % queries], group[:, :, queries], group[:, :, -1]
        if net.qk_norm == "head":
            query = _norm(weights, net, f"{name}.q_norm", query)
            key = _norm(weights, net, f"{name}.k_norm", key)
        query, key = _rotate(net, query), _rotate(net, key)
        scores = query @ key.transpose(1, 2) / math.sqrt(net.head_dim)
        likelihoods = scores.masked_fill(hidden_from, -math.inf).exp()
        outputs.append(likelihoods / likelihoods.sum(-1, keepdim=True) @ value)
    return _linear(weights, f"{name}.dense", torch.cat(outputs, dim=-1))


def _norm_of_heads(weights: Weights, net: Network, name: str, heads: Tensor) -> Tensor:
    """(b, s, n, d): a layernorm of all heads at once, an rmsnorm of each; a weight per element."""
    if net.norm == "rmsnorm":
        size = (heads**2).mean(-1, keepdim=True) + net.norm_epsilon
        return heads / size.sqrt() * weights[f"{name}.qk_layernorm.scale"]
    flat = {k: v.flatten() for k, v in weights.items() if k.startswith(f"{name}.qk_layernorm")}
    return _norm(flat, net, f"{name}.qk_layernorm", heads.flatten(2)).view_as(heads)


def _rotate(net: Network, head: Tensor) -> Tensor:
    """(b, s, d): features i and i + r/2 turn by position * base^(-2i/r); their cosines and sines
    are float32's."""
    half = net.rotary_dim // 2
    if half == 0:
        return head
    plain = [net.rotary_base ** (-2 * i / net.rotary_dim) for i in range(half)]
    frequencies = net.frequencies or plain
    angles = torch.tensor([[p * f for f in frequencies] for p in range(head.shape[1])]).double()
    scaled = (net.rotary_scale * function(angles) for function in (torch.cos, torch.sin))
    cos, sin = (values.float().to(head.dtype) for values in scaled)
    one, other, rest = head[..., :half], head[..., half : 2 * half], head[..., 2 * half :]
    return torch.cat((one * cos - other * sin, other * cos + one * sin, rest), dim=-1)


def _mlp(weights: Weights, net: Network, name: str, hidden: Tensor) -> Tensor:
    inner, function = _linear(weights, f"{name}.dense_h_to_4h", hidden), ACTIVATIONS[net.activation]
    if net.is_gated:
        size = inner.shape[-1] // 2
        inner = function(inner[..., :size]) * inner[..., size:]
    else:
        inner = function(inner)
    return _linear(weights, f"{name}.dense_4h_to_h", inner)


def _linear(weights: Weights, name: str, hidden: Tensor) -> Tensor:
    matrix = weights[f"{name}.weight"].flatten(0, -2)  # a gated one is stored as two
    bias = weights.get(f"{name}.bias")
    product = hidden @ matrix.T
    return product if bias is None else product + bias.flatten()


def _norm(weights: Weights, net: Network, name: str, hidden: Tensor) -> Tensor:
    if net.norm == "rmsnorm":
        size = (hidden**2).mean(-1, keepdim=True) + net.norm_epsilon
        return hidden / size.sqrt() * weights[f"{name}.scale"]
    if net.norm == "scalenorm":
        return hidden / (hidden**2).sum(-1, keepdim=True).sqrt() * weights[f"{name}.g"]
    centred = hidden - hidden.mean(-1, keepdim=True)
    deviation = ((centred**2).mean(-1, keepdim=True) + net.norm_epsilon).sqrt()
    if net.norm == "non_parametric_layernorm":
        return centred / deviation
    normed = centred / deviation * weights[f"{name}.weight"]
    bias = weights.get(f"{name}.bias")
    return normed if bias is None else normed + bias


def _sinusoids(length: int, width: int) -> Tensor:
    angles = [[p / 10000 ** (2 * i / width) for i in range(width // 2)] for p in range(length)]
    table = torch.tensor(angles).double()
    return torch.cat((table.sin(), table.cos()), dim=-1).float()
