"""Data and how it is mixed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from odm.methods import METHODS, RewardSource

from ..declarations import Key, above, at_least, in_range

if TYPE_CHECKING:
    MethodName: TypeAlias = str
else:
    MethodName = Literal[tuple(METHODS)]


@dataclass(frozen=True, kw_only=True)
class TrainWeighting:
    """How the weights of the training datasets are found, and where they come from."""

    rule: str = "list"
    """`list`, `uniform`, `natural`, `temperature`, `unimax`, `file` or `schedule`."""
    value: float | None = None
    """The temperature, or the epochs of `unimax`."""
    file: str | None = None
    """File of weights or of a schedule, as it was named."""
    sha256: str | None = None
    """Digest of the file's text, hexadecimal."""
    content: Mapping[str, Any] | None = None
    """What the file contains, its provenance included: nobody needs the file again."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Datasets, their domains, and the tokenizer."""

    train_domains: tuple[str, ...]
    """Names of the training domains in order; empty for unnamed data."""

    valid_domains: tuple[str, ...]
    """Names of the validation datasets in order; empty for unnamed data."""

    test_domains: tuple[str, ...]
    """Names of the test datasets in order; empty for unnamed data."""

    train_paths: tuple[str, ...]
    """Prefixes of training data; those that `split` divides are in all three."""

    valid_paths: tuple[str, ...]
    """Prefixes of validation data; empty where there is none, as the next."""

    test_paths: tuple[str, ...]
    """Prefixes of test data."""

    train_weights: tuple[float, ...]
    """Weights of the training datasets, as given (they need not sum to 1); those at the start for
    a schedule. Empty for a rule that needs the sizes of the datasets."""

    train_weighting: TrainWeighting
    """The rule by which the training weights are found."""

    valid_weights: tuple[float, ...]
    """Weights of the validation datasets; empty as `train_weights`, for what `split` holds out."""

    test_weights: tuple[float, ...]
    """Weights of the test datasets."""

    split: Annotated[tuple[float, float, float] | None, Key("split", str, "969, 30, 1")]
    """Shares for training, validation and test, in documents; separated by commas or slashes.
    Divides `data_path`. Where it is written it divides each of `train_data_paths` too, unless
    `valid_data_paths` or `test_data_paths` name the held-out text."""

    split_text: str
    """`split` as it was written, for messages."""

    seq_length: Annotated[int, Key("seq_length", int | None)]
    """Tokens of a training sample. Not set: `max_position_embeddings`."""

    eod_mask_loss: bool = False
    """Leaves out the loss at positions whose input token ends a document. Loss and gradient are
    means over the tokens of the global batch that are left, whatever the layout and accumulation;
    in GPT-NeoX they are means of the means of micro-batches."""

    use_named_eval_datasets: bool = False
    """Evaluates every domain by itself: on the whole of its data, or on the samples that the two
    keys below or `eval_iters` leave."""

    max_validation_samples_per_dataset: Annotated[int | None, at_least(1)] = None
    """Samples of each named validation dataset at most, spread evenly over it; the same text
    whatever the seed."""

    max_test_samples_per_dataset: Annotated[int | None, at_least(1)] = None
    """Samples of each named test dataset at most, as `max_validation_samples_per_dataset`."""

    weight_by_num_documents: bool = False
    """Weights follow the numbers of documents n: proportional to n^alpha (1 - n/N). Replaces
    weights of your own."""

    weighted_sampler_alpha: Annotated[float, at_least(0)] = 1.0
    """Exponent alpha of `weight_by_num_documents`. 0 makes datasets equal, 1 proportional."""

    cache_dir: Annotated[str | None, Key("data_cache_dir")] = None
    """Folder of index files. Not set: beside the data, or a cache folder where that cannot be
    written."""

    mmap_warmup: bool = False
    """Reads dataset files once at start so that they are in memory."""

    tokenizer_type: Literal[
        "GPT2BPETokenizer",
        "HFTokenizer",
        "HFGPT2Tokenizer",
        "SPMTokenizer",
        "CharLevelTokenizer",
        "TiktokenTokenizer",
    ] = "GPT2BPETokenizer"
    """GPT2BPETokenizer reads vocab.json and merges.txt, HFTokenizer a tokenizer.json,
    HFGPT2Tokenizer a name or folder of transformers, SPMTokenizer a SentencePiece model,
    TiktokenTokenizer an encoding's name; CharLevelTokenizer needs no file: its tokens are bytes."""

    tokenizer_adds_special_tokens: bool = False
    """Adds to each text what the `post_processor` of the tokenizer.json adds in transformers, such
    as a begin-of-text token. Prepare the data with `--add-special-tokens` then. Prompts and
    contexts of tasks get what comes before a text; an export keeps the `post_processor`."""

    vocab_file: str | None = None
    """File, folder or name of the tokenizer's vocabulary."""

    merge_file: str | None = None
    """File of merges, for GPT2BPETokenizer."""

    padded_vocab_size: Annotated[int | None, at_least(0)] = None
    """Vocabulary with padding. Computed from the tokenizer; read only by `--dry-run` where there is
    no tokenizer to ask."""


class DataKeys:
    """Keys that decide fields of `Data` together."""

    data_path: str | None = None
    """Prefix of one dataset that `split` divides. Not together with lists of paths."""

    train_data_paths: list[str] | None = None
    """Prefixes of the training datasets, one per domain."""

    valid_data_paths: list[str] | None = None
    """Prefixes of the validation datasets. Optional, as the next: what is not named is not
    measured. See `split`."""

    test_data_paths: list[str] | None = None
    """Prefixes of the test datasets."""

    train_data_weights: list[float] | Literal["uniform", "natural"] | dict | None = None
    """Weight of each training dataset, in the order of the paths; they need not sum to 1. Or a
    rule: `uniform`; `natural`, in proportion to the samples of each; `{temperature: x}`, to
    samples^(1/x); `{unimax: n}`, as equal as n epochs of each allow; `{file: FILE}`, a section of
    domain: weight; `{schedule: FILE}`, weights that change with the tokens. Not set: equal. With a
    `data_sampling_method` that learns, these are the initial weights, and a schedule is refused."""

    valid_data_weights: list[float] | None = None
    """Weight of each validation dataset. No effect with `use_named_eval_datasets`, which evaluates
    each by itself."""

    test_data_weights: list[float] | None = None
    """Weight of each test dataset. No effect with `use_named_eval_datasets`."""

    data_domain_names: list[str] | None = None
    """Names of the domains, in the order of `train_data_paths`. Not set: the folder that holds the
    dataset's files."""

    use_named_train_datasets: bool = False
    """Keeps training datasets apart by the names of their domains."""

    data_impl: Literal["infer", "mmap", "cached", "lazy"] = "infer"
    """Format of dataset files. All of them are memory-mapped."""


@dataclass(frozen=True, kw_only=True)
class DomainGroup:
    """Limits on the sum of the weights of some domains."""

    name: str
    domains: tuple[str, ...]
    minimum: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Online data mixing: how domain weights are learnt, and how a batch is drawn."""

    method: Annotated[
        str,
        Key("data_sampling_method", MethodName | None),
    ]
    """How domain weights follow the losses. `smoothed_mean` is the released method of Online Data
    Mixing, `odm_paper` its published equation; `static` or nothing keeps `train_data_weights`;
    `schedule` is what `static` becomes by `train_data_weights: {schedule: FILE}`;
    `naive_validation` needs `data_sampling_reward: heldout`. docs/mixing.md describes each."""

    run_length: int
    """Consecutive samples of the global batch that share a domain: 1, the micro-batch size or the
    whole batch."""

    warmup_steps: Annotated[int, Key("data_sampling_warmup_steps"), at_least(0)] = 0
    """Iterations during which the initial weights are kept. 0 updates from the first iteration."""

    update_frequency: Annotated[int, Key("data_sampling_update_frequency"), at_least(0)] = 1
    """Iterations from one update of the weights to the next; only learning_curve and ado use the
    losses in between. At least 1 for methods that learn."""

    points: tuple[tuple[float, tuple[float, ...]], ...]
    """Points of a schedule: iterations before it (a number that need not be whole) and one weight
    per domain. Empty for other methods."""

    interpolation: str
    """Weights between two points: `constant` or `linear`."""

    smoothing_factor: Annotated[
        float, Key("data_sampling_smoothing_factor"), in_range("[0, 1)", "1.0 would never learn")
    ] = 0.9
    """Share of the old estimate that a new observation keeps, in [0, 1). 0 forgets at once. For
    smoothed_mean and odm_paper."""

    reward: Annotated[
        RewardSource, Key("data_sampling_reward", Literal["train", "heldout"], "train")
    ]
    """The losses that the weights follow: of the training samples, or of held-out windows, fixed
    samples of each domain's validation data. Methods that learn accept both."""

    heldout_interval: Annotated[
        int | None, Key("data_sampling_heldout_interval", int | None), at_least(1)
    ]
    """Iterations from one measurement of held-out losses to the next, a multiple of
    `data_sampling_update_frequency`. Not set: as many as keep the cost at about 1 % of the training
    time. With `data_sampling_reward: train` they are measured and logged only if this is set."""

    heldout_samples: Annotated[int, Key("data_sampling_heldout_samples"), at_least(1)] = 16
    """Held-out windows of each domain, or as many as its validation data have."""

    heldout_parts: Annotated[int, Key("data_sampling_heldout_parts"), at_least(1)] = 8
    """Parts into which the windows of a domain are divided. The first measurement is of all
    windows, each later one of the next part."""

    batch_normalized_reward: bool = False
    """Maps the generalization rewards of an iteration to [0, 1]. See `validation_based_reward`."""

    scale_by_reward_loss_diff: bool = False
    """Multiplies generalization rewards by the decrease of the held-out loss. See
    `validation_based_reward`."""

    reference_losses: Annotated[
        tuple[float, ...], Key("data_sampling_reference_losses", str | dict | None)
    ]
    """Losses of a reference model in nats per token, for doremi: a JSON file {domain: nats}, a
    report of `evaluate.py`, or a section of domain: nats. The run stores the numbers; it resumes
    without the file."""

    target_losses: Annotated[
        tuple[float, ...], Key("data_sampling_target_losses", str | dict | None)
    ]
    """Losses to reach in nats per token, for dynamic_batch_loading, as
    `data_sampling_reference_losses`."""

    transfer_matrix: Annotated[
        tuple[tuple[float, ...], ...], Key("data_sampling_transfer_matrix", str | dict | None)
    ]
    """How much training on one domain helps another, for skill_graph: a JSON file or a section
    {trained domain: {helped domain: number}}, with a number for every pair."""

    step_size: Annotated[float | None, Key("data_sampling_step_size"), above(0)] = None
    """Factor of the losses in one update, for doremi (not set: 1), dynamic_batch_loading (1) and
    skill_graph (0.2)."""

    window: Annotated[int | None, Key("data_sampling_window"), at_least(1)] = None
    """Number of the last updates whose losses are added up, for skill_graph. Not set: 3."""

    perplexity_share: float
    """Share of mean perplexity in the objective, in [0, 1]; the rest is mean loss."""

    objective_weights: tuple[float, ...]
    """What each domain counts in the objective; empty if all count alike."""

    max_ratio: Annotated[
        float, Key("data_sampling_max_ratio"), in_range("(1, 1000]", "1.0 would never learn")
    ] = 3.0
    """How many times its initial weight a domain gets at most; at least it gets the initial weight
    divided by this number. For learning_curve."""

    exponent: Annotated[
        float, Key("data_sampling_exponent"), in_range("(0, 1]", "0.0 would never learn")
    ] = 0.5
    """How far the weights follow the estimates: 0 would keep the initial weights, 1 would follow in
    full. For learning_curve."""

    repetition_decay: Annotated[float | None, Key("data_sampling_repetition_decay"), above(0)] = (
        None
    )
    """How fast text loses its worth when it is read again, in passes over its domain: after p
    passes, more of it is worth exp(-(p - 1) / this number) of new text to learning_curve. Studies
    found about 15. Not set: text that is read again counts like new text."""

    stratified: Annotated[bool, Key("data_sampling_stratified")] = False
    """Draws domains with as little chance as possible: counts differ from weight times draws by
    less than one."""

    min_weights: Annotated[tuple[float, ...], Key("data_sampling_min_weight", float | dict | None)]
    """Smallest weight, in [0, 1]: one number for all domains, or a section of domain: number (other
    domains have no such limit). Holds from the first iteration on, whatever the method."""

    max_weights: Annotated[tuple[float, ...], Key("data_sampling_max_weight", float | dict | None)]
    """Largest weight, in [0, 1], as `data_sampling_min_weight`."""

    max_epochs: Annotated[
        tuple[float | None, ...], Key("data_sampling_max_epochs", float | dict | None)
    ]
    """Times that a domain is read at most in the `train_iters` of the run, above 0, as
    `data_sampling_min_weight`, over which it wins. Draws are random: the last iterations may
    overshoot it a little."""

    groups: Annotated[tuple[DomainGroup, ...], Key("data_sampling_groups", dict | None)]
    """Limits on the sum of the weights of some domains, by a name of your choice: `{code: {domains:
    [python, c], min: 0.1, max: 0.3}}`, where min is 0 and max 1 if they are not written. A domain
    is in one group at most. The ratios within a group that is limited stay as they are."""

    guard: Annotated[Literal["anchor"] | None, Key("data_sampling_guard")] = None
    """`anchor`: a run whose learnt mixture does not help ends with the counts of its anchor, the
    initial weights, exactly. Until 60 % of the run no domain is read more than the anchor reads it
    in the whole run; the estimated gain over the anchor, with its error, decides."""

    trust_region: Annotated[Mapping[str, float], Key("data_sampling_trust_region", dict | None)]
    """How far the weights move per iteration: `{kl: x}`, at most x nats of relative entropy from
    the last to the next weights, or `{total_variation: x}`, at most the share x of the draws."""


class MixingKeys:
    """Keys that decide fields of `Mixing` together."""

    data_sampling_objective: dict | None = None
    """What learning_curve makes small, and what the guard judges by: `{perplexity: 0.5, weights:
    {code: 2.0}}`. `perplexity` is the share of mean perplexity, in [0, 1]; the rest is mean loss.
    `weights` is what domains count in both means, 1 for domains that are not named."""

    mixed_batches: bool = False
    """Every sample of a batch draws its own domain."""

    mixed_minibatches: bool = False
    """Every micro-batch of every data-parallel process draws its own domain: Online Data Mixing as
    published. With neither this nor `mixed_batches`, named datasets give one domain to a whole
    iteration."""

    validation_based_reward: bool = False
    """The research code's key for rewards from held-out losses. With `mixed_minibatches` and `exp3`
    a reward is the held-out loss less the training loss (generalization); with `mixed_batches` and
    `naive_validation` it is the held-out loss, as with `data_sampling_reward: heldout`."""
