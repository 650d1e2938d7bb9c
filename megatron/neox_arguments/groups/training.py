"""Data, checkpoints and the length of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NeoXArgsTraining:
    """Data paths and weights, saving and loading, iterations, regularisation, activation
    checkpointing.
    """

    data_path: str | None = None
    """Prefix of one dataset that `split` divides. Not together with lists of paths."""

    split: str = "969, 30, 1"
    """Shares for training, validation and test, in documents; separated by commas or slashes.
    Divides `data_path`. Where it is written it divides each of `train_data_paths` too, unless
    `valid_data_paths` or `test_data_paths` name the held-out text."""

    train_data_paths: list[str] | None = None
    """Prefixes of the training datasets, one a domain."""

    valid_data_paths: list[str] | None = None
    """Prefixes of the validation datasets. Optional, as the next: what is not named is not
    measured. See `split`."""

    test_data_paths: list[str] | None = None
    """Prefixes of the test datasets."""

    train_data_weights: list[float] | None = None
    """Weight of each training dataset, in the order of the paths; they need not sum to 1. Not set:
    equal. With a `data_sampling_method` these are the initial weights."""

    valid_data_weights: list[float] | None = None
    """Weight of each validation dataset. No effect with `use_named_eval_datasets`, which evaluates
    each by itself."""

    test_data_weights: list[float] | None = None
    """Weight of each test dataset. No effect with `use_named_eval_datasets`."""

    data_domain_names: list[str] | None = None
    """Names of the domains, in the order of `train_data_paths`. Not set: the folder that holds the
    dataset's files."""

    data_cache_dir: str | None = None
    """Folder of index files. Not set: beside the data, or a cache folder where that cannot be
    written."""

    use_named_train_datasets: bool = False
    """Keeps training datasets apart by the names of their domains."""

    use_named_eval_datasets: bool = False
    """Evaluates every domain by itself: on the whole of its data, or on the samples that the two
    keys below or `eval_iters` leave."""

    max_validation_samples_per_dataset: int | None = None
    """Samples of each named validation dataset at most, spread evenly over it; the same text
    whatever the seed."""

    max_test_samples_per_dataset: int | None = None
    """Samples of each named test dataset at most, as `max_validation_samples_per_dataset`."""

    weight_by_num_documents: bool = False
    """Weights follow the numbers of documents n: proportional to n^alpha (1 - n/N). Replaces
    weights of your own."""

    weighted_sampler_alpha: float = 1.0
    """Exponent alpha of `weight_by_num_documents`. 0 makes datasets equal, 1 proportional."""

    data_impl: Literal["infer", "mmap", "cached", "lazy"] = "infer"
    """Format of dataset files. All of them are memory-mapped."""

    mmap_warmup: bool = False
    """Reads dataset files once at start so that they are in memory."""

    vocab_file: str | None = None
    """File, folder or name of the tokenizer's vocabulary."""

    merge_file: str | None = None
    """File of merges, for GPT2BPETokenizer."""

    save: str | None = None
    """Folder for checkpoints. Needs `checkpoint_factor` or `extra_save_iters`."""

    load: str | None = None
    """Folder to load a checkpoint from. An empty one means a fresh start only when it is `save`
    itself."""

    config_files: dict[str, str] | None = None
    """Texts of the files of this configuration by name, kept for the checkpoint. Set by the
    program."""

    checkpoint_scale: Literal["linear", "log"] = "linear"
    """`linear` saves every `checkpoint_factor` iterations; `log` at its powers."""

    checkpoint_factor: int | float | None = None
    """Distance between checkpoints, or the ratio of their iterations with `log` (then above 1, and
    1 is saved too)."""

    extra_save_iters: list[int] | None = None
    """More iterations to save. 0 saves the model before training. Never deleted by
    `keep_last_n_checkpoints`."""

    keep_last_n_checkpoints: int | None = None
    """Deletes older checkpoints. Not set: keeps all."""

    async_save: bool = False
    """Copies weights and optimizer to memory and writes the checkpoint while training goes on.
    False: training waits until the files are on disk."""

    no_save_optim: bool = False
    """Leaves the optimizer out of checkpoints. Training cannot continue exactly from them."""

    no_save_rng: bool = False
    """Leaves random states out of checkpoints."""

    no_load_optim: bool = False
    """Loads weights without the optimizer."""

    no_load_rng: bool = False
    """Keeps the random states of the start."""

    finetune: bool = False
    """Loads weights alone and starts at iteration 0."""

    batch_size: int | None = None
    """Old name of `train_micro_batch_size_per_gpu`."""

    gas: int | None = None
    """Old name of `gradient_accumulation_steps`."""

    clip_grad: float | None = None
    """Old name of `gradient_clipping`."""

    save_interval: int | None = None
    """Old name of `checkpoint_factor` with `checkpoint_scale: linear`."""

    train_data_path: str | list[str] | None = None
    """Spelling of `train_data_paths` in old instructions."""

    valid_data_path: str | list[str] | None = None
    """Spelling of `valid_data_paths` in old instructions."""

    test_data_path: str | list[str] | None = None
    """Spelling of `test_data_paths` in old instructions."""

    min_loss_scale: float | None = None
    """Old name of `min_scale`."""

    train_iters: int | None = None
    """Optimizer steps of the run. Required."""

    eval_interval: int = 1000
    """Iterations from one validation to the next."""

    eval_iters: int = 100
    """Global batches of one evaluation. Datasets without names share them by their weights. Each
    named dataset is measured on so many at most, but only where the number is written and
    `max_validation_samples_per_dataset` (for test data `max_test_samples_per_dataset`) is not set.
    0: training measures nothing on held-out text."""

    eval_harness_interval: int | None = None
    """Iterations from one run of `eval_tasks` to the next while training; they are run at the end
    too. Not set: training runs none."""

    exit_interval: int | None = None
    """Saves and ends the program at every multiple of this."""

    attention_dropout: float = 0.0
    """Chance that an attention weight is dropped, in [0, 1)."""

    hidden_dropout: float = 0.0
    """Chance that a value added to the residual stream is dropped, in [0, 1)."""

    weight_decay: float = 0.1
    """Decay of matrices and embeddings; biases and norms have none."""

    checkpoint_activations: bool = False
    """Computes activations again in the backward pass instead of keeping them."""

    checkpoint_num_layers: int = 1
    """Blocks of one stretch that is computed again."""

    hysteresis: int = 2
    """Overflows before the loss scale falls, where the `fp16` section does not say. For fp16."""

    loss_scale: float | None = None
    """Fixed loss scale of fp16, where the `fp16` section does not say. Not set or 0: adapts."""

    loss_scale_window: float = 1000.0
    """Steps without overflow before the loss scale grows, where the `fp16` section does not say."""

    min_scale: float = 1.0
    """Smallest loss scale, where the `fp16` section does not say."""

    z_loss: float = 0.0
    """Adds this times the squared log-normaliser of each token's logits to the training loss, which
    keeps logits small; 0.0001 is usual. Reported losses, and so the mixture's rewards, are without
    it."""
