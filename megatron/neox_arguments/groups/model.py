"""The shape of the network and how its weights start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

INIT_METHODS = Literal[
    "normal",
    "scaled_normal",
    "orthogonal",
    "scaled_orthogonal",
    "xavier_uniform",
    "xavier_normal",
    "wang_init",
    "small_init",
    "single_residual_scaled_normal",
]

ACTIVATIONS = Literal[
    "gelu",
    "geglu",
    "relu",
    "softsign",
    "swish",
    "mish",
    "silu",
    "reglu",
    "swiglu",
    "bilinear",
    "glu",
]

GATED_ACTIVATIONS = frozenset({"geglu", "reglu", "swiglu", "bilinear", "glu"})


@dataclass(frozen=True, kw_only=True)
class NeoXArgsModel:
    """Architecture, precision and initialisation of the model."""

    precision: Literal["fp16", "fp32", "bfloat16"] | None = None
    """Number format of training. Not set: read from the `fp16` and `bf16` sections, else fp32."""

    num_layers: int | None = None
    """Transformer blocks. Required."""

    hidden_size: int | None = None
    """Width of the residual stream. Required; a multiple of `num_attention_heads`."""

    intermediate_size: int | None = None
    """Width X from which GPT-NeoX computes the inner MLP width: X itself for plain activations,
    about X/3 for gated ones. Prefer `mlp_inner_size`, which is the width itself."""

    mlp_inner_size: int | None = None
    """Inner width of the MLP as built, for plain and gated activations alike. Wins over
    `intermediate_size` and `expansion_factor`."""

    mlp_multiple_of: int = 1
    """The inner MLP width is rounded up to a multiple of this."""

    expansion_factor: float | None = None
    """`intermediate_size` as a multiple of `hidden_size`. Not set: 4."""

    mlp_type: str | None = None
    """Spelling from before 2024: `regular`, or `llama` for a SiLU-gated MLP without biases whose
    inner width is `intermediate_size`, else 8/3 of `hidden_size` rounded up to a multiple of 256.
    Now `activation: swiglu`, `mlp_inner_size` and `use_bias_in_mlp: false`."""

    num_attention_heads: int | None = None
    """Query heads of each attention layer. Required."""

    num_kv_heads: int | None = None
    """Key and value heads. Not set: as many as query heads. Fewer, dividing them: grouped queries;
    1: one for all."""

    seq_length: int | None = None
    """Tokens of a training sample. Not set: `max_position_embeddings`."""

    sliding_window_width: int | None = None
    """Tokens that a position sees, itself included. Refused: a position sees all before it."""

    max_position_embeddings: int | None = None
    """Longest sequence the model can take, in tokens. Required; at least `seq_length`."""

    norm: Literal[
        "layernorm",
        "rmsnorm",
        "scalenorm",
        "non_parametric_layernorm",
        "te_rmsnorm",
        "te_layernorm",
    ] = "layernorm"
    """Normalisation layer of blocks and of the output: layernorm, rmsnorm or scalenorm; the others
    are refused."""

    layernorm_epsilon: float = 1.0e-5
    """Added to the variance in LayerNorm."""

    rms_norm_epsilon: float = 1.0e-8
    """Added to the mean square in RMSNorm. Llama models use 1e-5 or 1e-6."""

    scalenorm_epsilon: float = 1.0e-8
    """Smallest norm that ScaleNorm divides by."""

    pos_emb: Literal["learned", "rotary", "sinusoidal", "rpe", "alibi", "none"] = "learned"
    """How positions enter the model. `rpe` and `alibi` are refused."""

    no_weight_tying: bool = False
    """True gives the output layer a weight of its own; false shares the word embedding."""

    attention_config: list | str | None = None
    """Attention type of each layer, as `[[[types...], repeats or "all"], ...]`: `[[["flash"], 12]]`
    or `[[["global", "flash"], "all"]]`; or a plain list of one type a layer. Not set: `global`
    everywhere. `flash` and `global` compute the same; other types are refused."""

    num_unique_layers: int | None = None
    """Planned weight sharing between layers; never did anything in GPT-NeoX. Refused unless equal
    to `num_layers`."""

    make_vocab_size_divisible_by: int = 128
    """The vocabulary is padded to a multiple of this, for speed. Padding never leaves the program.
    """

    activation: ACTIVATIONS = "gelu"
    """Nonlinearity of the MLP. geglu, reglu, swiglu, bilinear and glu are gated: they multiply two
    projections."""

    bias_gelu_fusion: bool = False
    """Uses the tanh form of gelu, as the fused kernel of GPT-NeoX does. Not only speed: the values
    differ by 1e-3."""

    init_method_std: float = 0.02
    """Standard deviation of `normal` and base of the scaled forms."""

    rotary_pct: float = 1.0
    """Share of each head's dimensions that is rotated, in (0, 1]."""

    rotary_emb_base: int = 10000
    """Base of the rotation's wavelengths."""

    init_method: INIT_METHODS = "normal"
    """First values of all weights but those that write into the residual stream."""

    output_layer_init_method: INIT_METHODS = "scaled_normal"
    """First values of the weights that write into the residual stream: attention output and second
    MLP matrix."""

    gpt_j_residual: bool = False
    """Adds attention and MLP to the same input, `x + attention(norm1(x)) + mlp(norm2(x))`, instead
    of in turn."""

    gpt_j_tied: bool = False
    """With `gpt_j_residual`: one norm feeds both attention and MLP. No effect without it."""

    use_bias_in_norms: bool = True
    """Gives norms a bias."""

    use_bias_in_attn_linear: bool = True
    """Gives the attention projections a bias."""

    use_bias_in_mlp: bool = True
    """Gives the MLP matrices a bias."""

    output_layer_parallelism: Literal["column", "row"] = "column"
    """How tensor parallelism cuts the output layer. `row` of old files is read as `column`: with a
    loss over parts of the vocabulary `row` gave wrong losses."""
