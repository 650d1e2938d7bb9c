"""The network."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..declarations import ONLY_TRAINING, Key, above, at_least, at_most, between, in_range

MOST_LAYERS = 100_000
"""More are a slip of the pen, and lists of them would fill the memory."""

WIDEST_HEAD = 2**16
"""Heads have 64 to 256 dimensions; more than this is a slip of the pen."""

InitMethod = Literal[
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

GatedActivation = Literal["geglu", "reglu", "swiglu", "bilinear", "glu"]
Activation = Literal["gelu", "relu", "softsign", "swish", "mish", "silu", GatedActivation]
UnbuiltNorm = Literal["te_rmsnorm", "te_layernorm"]
QkNorm = Literal["none", "neox", "head"]
RopeType = Literal["linear", "dynamic", "yarn", "llama3"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotation frequencies are changed for longer texts; None: the type has no such value.

    Names and meanings are those of ``rope_scaling`` in the config.json of transformers.
    """

    rope_type: RopeType
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None

    def written(self) -> dict[str, Any]:
        """Returns the fields that have a value, as a configuration file has them."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class SoftPrompt:
    """A prompt of trained vectors, as `soft_prompt_tuning` describes it."""

    num_tokens: int
    """Vectors of the prompt."""
    init_string: str
    """Text whose word embeddings are the first values; empty: random ones."""
    init_range: float
    """Random first values are uniform between -init_range and init_range."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the network is: all that decides its parameters and what they compute."""

    num_layers: Annotated[int, Key("num_layers"), at_least(1), at_most(MOST_LAYERS)]
    """Transformer blocks. Required."""

    hidden_size: Annotated[int, Key("hidden_size"), at_least(1)]
    """Width of the residual stream. Required; a multiple of `num_attention_heads` unless `head_dim`
    is set."""

    num_attention_heads: Annotated[int, Key("num_attention_heads"), at_least(1)]
    """Query heads of each attention layer. Required."""

    num_kv_heads: Annotated[int, Key("num_kv_heads", int | None)]
    """Key and value heads. Not set: as many as query heads. Fewer, dividing them: grouped queries;
    1: one for all."""

    head_dim: Annotated[int, Key("head_dim", int | None), at_least(1), at_most(WIDEST_HEAD)]
    """Width of an attention head. Not set: `hidden_size` / `num_attention_heads`. Otherwise the
    heads together may be wider or narrower than `hidden_size`, as in Qwen3 and Mistral NeMo."""

    max_position_embeddings: Annotated[int, Key("max_position_embeddings"), at_least(1)]
    """Longest sequence the model can take, in tokens. Required; at least `seq_length`. With learned
    positions the number of rows of their table, see `opt_pos_emb_offset`."""

    mlp_inner_size: Annotated[int, Key("mlp_inner_size", int | None), above(0)]
    """Inner width of the MLP as built, for plain and gated activations alike. Wins over
    `intermediate_size` and `expansion_factor`."""

    is_gated_mlp: bool
    """The activation multiplies two projections."""

    activation: Activation = "gelu"
    """Nonlinearity of the MLP. geglu, reglu, swiglu, bilinear and glu are gated: they multiply two
    projections."""

    bias_gelu_fusion: bool = False
    """Uses the tanh form of gelu, as the fused kernel of GPT-NeoX does. Not only speed: the values
    differ by 1e-3."""

    norm: Literal["layernorm", "rmsnorm", "scalenorm", "non_parametric_layernorm", UnbuiltNorm] = (
        "layernorm"
    )
    """Normalisation layer of blocks and of the output: layernorm, rmsnorm, scalenorm, or
    non_parametric_layernorm, which has neither weight nor bias. The others are refused."""

    norm_epsilon: float
    """Added to the variance of the chosen `norm`."""

    qk_norm: Annotated[QkNorm, Key("qk_norm", QkNorm | None)]
    """Normalises queries and keys before they are rotated, with the chosen `norm`. head: each head
    by itself, with one weight of `head_dim` for all queries and one for all keys, as in Qwen3.
    neox: as `use_qk_layernorm`. Not set: none, or what `use_qk_layernorm` says."""

    pos_emb: Literal["learned", "rotary", "sinusoidal", "rpe", "alibi", "none"] = "learned"
    """How positions enter the model. `alibi`: the score of a key falls with its distance from the
    query, by a fixed slope per head; `rpe`: a learned bias per head and bucket of distances, as in
    T5, which all layers share."""

    rpe_num_buckets: Annotated[int, between(2, 1 << 16)] = 32
    """Buckets of distances with `pos_emb: rpe`. The first half has one distance each, the second
    half grows logarithmically."""

    rpe_max_distance: Annotated[int, between(2, 1 << 31)] = 128
    """Distances of this many tokens and more share the last bucket, with `pos_emb: rpe`; above half
    of `rpe_num_buckets`."""

    attention_reach: tuple[tuple[int, int] | None, ...] = field(default_factory=tuple)
    """How far back a token sees in each layer, as (blocks, tokens per block): its own block up to
    itself, and so many blocks before it. None: all earlier tokens; empty: so in all layers."""

    reset_attention_mask: bool = False
    """Hides earlier documents: a token attends to its own document alone. A document ends with its
    end-of-document token. For training and losses on data; a prompt or a task is one document."""

    reset_position_ids: bool = False
    """Counts positions from the start of each document, instead of the start of the sample. For
    training and losses on data."""

    rotary_dim: int
    """Rotated dimensions of a head; 0 without rotary positions."""

    rotary_emb_base: Annotated[int | float, above(0)] = 10000
    """Base of the rotation's wavelengths (`rope_theta` in transformers)."""

    rope_scaling: Annotated[RopeScaling | None, Key("rope_scaling", dict[str, Any] | None)] = None
    """Changes rotation frequencies for texts longer than those of an earlier training; fields and
    results are those of transformers. `rope_type` (or `type`) linear and dynamic take `factor`;
    yarn takes `factor`, `original_max_position_embeddings` and, if wanted, `attention_factor`,
    `mscale`, `mscale_all_dim`, `beta_fast` (32), `beta_slow` (1), `truncate` (true); llama3 takes
    `factor`, `original_max_position_embeddings`, `low_freq_factor` and `high_freq_factor`. dynamic
    changes nothing up to `max_position_embeddings`."""

    opt_pos_emb_offset: Annotated[int, at_least(0)] = 0
    """Position of the first token, with learned or sinusoidal positions; 2 in OPT. Learned ones
    have a table of `max_position_embeddings` rows, of which the first ones are then never read, so
    that a text has at most `max_position_embeddings` minus this many tokens."""

    no_weight_tying: bool = False
    """True gives the output layer a weight of its own; false shares the word embedding."""

    make_vocab_size_divisible_by: Annotated[int, at_least(1)] = 128
    """The vocabulary is padded to a multiple of this, for speed. Padding never leaves the program.
    """

    gpt_j_residual: bool = False
    """Adds attention and MLP to the same input, `x + attention(norm1(x)) + mlp(norm2(x))`, instead
    of in turn."""

    gpt_j_tied: bool = False
    """With `gpt_j_residual`: one norm feeds both attention and MLP. No effect without it."""

    use_bias_in_norms: bool = True
    """Gives norms a bias."""

    use_bias_in_attn_linear: bool = True
    """Gives the projection to queries, keys and values a bias, and the output projection of
    attention too unless `use_bias_in_attn_output` is set."""

    use_bias_in_attn_output: Annotated[bool, Key("use_bias_in_attn_output", bool | None)]
    """Gives the output projection of attention a bias. Not set: as `use_bias_in_attn_linear`. Qwen2
    has it false, with biases on queries, keys and values."""

    use_bias_in_mlp: bool = True
    """Gives the MLP matrices a bias."""

    init_method: InitMethod = "normal"
    """First values of all weights but those that write into the residual stream."""

    output_layer_init_method: InitMethod = "scaled_normal"
    """First values of the weights that write into the residual stream: attention output and second
    MLP matrix."""

    init_method_std: Annotated[float, above(0)] = 0.02
    """Standard deviation of `normal` and base of the scaled forms."""

    hidden_dropout: Annotated[float, in_range("[0, 1)"), ONLY_TRAINING] = 0.0
    """Chance that a value added to the residual stream is dropped, in [0, 1)."""

    attention_dropout: Annotated[float, in_range("[0, 1)"), ONLY_TRAINING] = 0.0
    """Chance that an attention weight is dropped, in [0, 1)."""

    z_loss: Annotated[float, at_least(0), ONLY_TRAINING] = 0.0
    """Adds this times the squared log-normaliser of each token's logits to the training loss, which
    keeps logits small; 0.0001 is usual. Reported losses, and so the mixture's rewards, are without
    it."""

    checkpoint_num_layers: Annotated[int, Key("checkpoint_num_layers", int, 1), at_least(1)]
    """Blocks of one stretch that is computed again in the backward pass, with
    `checkpoint_activations`; 0 in the answer: all activations are kept."""

    soft_prompt: Annotated[SoftPrompt | None, Key("soft_prompt_tuning", dict[str, Any] | None)] = (
        None
    )
    """`{"enabled": true, "num_tokens": 10, "init_string": "", "init_range": 0.5}`: trains so many
    vectors in front of every text, and nothing else. `load` names the model, with `finetune: true`
    at the start; evaluation and generation need the section too. The first values are the word
    embeddings of `init_string`, or uniform up to `init_range`. See docs/soft_prompts.md."""

    @property
    def longest_text(self) -> int:
        """The most tokens that a text may have: the positions beside an offset and a prompt."""
        offset = self.opt_pos_emb_offset if self.pos_emb == "learned" else 0
        prompt = self.soft_prompt.num_tokens if self.soft_prompt else 0
        return self.max_position_embeddings - offset - prompt

    @property
    def tells_documents(self) -> bool:
        """Whether the model must know where documents begin."""
        return self.reset_attention_mask or self.reset_position_ids


class ModelKeys:
    """Keys that decide fields of `Model` together."""

    use_qk_layernorm: bool = False
    """Normalises queries and keys as GPT-NeoX does: one norm of the kind `norm` for both, with a
    weight per head and dimension. A layernorm takes its mean and variance over all heads together;
    an rmsnorm or scalenorm each head by itself. Needs as many key as query heads. Prefer `qk_norm:
    head`."""

    layernorm_epsilon: Annotated[float, above(0)] = 1.0e-5
    """Added to the variance in LayerNorm."""

    rms_norm_epsilon: Annotated[float, above(0)] = 1.0e-8
    """Added to the mean square in RMSNorm. Llama models use 1e-5 or 1e-6."""

    scalenorm_epsilon: Annotated[float, above(0)] = 1.0e-8
    """Smallest norm that ScaleNorm divides by."""

    rotary_pct: float = 1.0
    """Share of each head's dimensions that is rotated, in (0, 1]."""

    intermediate_size: Annotated[int | None, above(0)] = None
    """Width X from which GPT-NeoX computes the inner MLP width: X itself for plain activations,
    about X/3 for gated ones. Prefer `mlp_inner_size`, which is the width itself."""

    mlp_multiple_of: Annotated[int, at_least(1)] = 1
    """The inner MLP width is rounded up to a multiple of this."""

    expansion_factor: Annotated[float | None, above(0)] = None
    """`intermediate_size` as a multiple of `hidden_size`. Not set: 4."""

    mlp_type: Literal["regular", "llama"] | None = None
    """Spelling from before 2024: `regular`, or `llama` for a SiLU-gated MLP without biases whose
    inner width is `intermediate_size`, else 8/3 of `hidden_size` rounded up to a multiple of 256.
    Now `activation: swiglu`, `mlp_inner_size` and `use_bias_in_mlp: false`."""

    attention_config: list | str | None = None
    """Attention type of each layer, as `[[[types...], repeats or "all"], ...]`: `[[["flash"], 12]]`
    or `[[["global", "flash"], "all"]]`; or a plain list of one type a layer. Not set: `global`
    everywhere. `flash` and `global` compute the same, but only `flash` layers have the window of
    `sliding_window_width`. `local` layers see the blocks of `sparsity_config`. Other types are
    refused."""

    sliding_window_width: Annotated[int | None, at_least(1)] = None
    """Earlier tokens that a position sees, besides itself. For layers of type `flash`, as in
    GPT-NeoX; for all if `attention_config` is not set. Not set: all earlier tokens."""

    sparsity_config: dict | None = None
    """Blocks of `local` layers: `block` tokens each (16 if not set), and `num_local_blocks` or else
    `num_sliding_window_blocks` (4): a token sees its own block up to itself, and half that number
    of blocks before it. Other keys have no effect on `local` layers."""

    num_unique_layers: int | None = None
    """Planned weight sharing between layers; never did anything in GPT-NeoX. Refused unless equal
    to `num_layers`."""

    output_layer_parallelism: Literal["column", "row"] = "column"
    """How tensor parallelism cuts the output layer. `row` of old files is read as `column`: with a
    loss over parts of the vocabulary `row` gave wrong losses."""

    checkpoint_activations: bool = False
    """Computes activations again in the backward pass instead of keeping them."""
