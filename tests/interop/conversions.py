"""Small models and what the tests of conversions do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.checkpoint.loading import load_module_weights
from megatron.model.gpt2_model import GPT2Model
from megatron.mpu import RankGrid, Topology
from tools.benchmark.interop.networks import (
    VOCAB_SIZE,
    far_from_start,
    network_shape,
    write_network,
)
from tools.convert_to_hf import main as export_main
from tools.hf.settings import settings_of

# what the interop command uses serves the tests too
shape_of, random_weights, write_run = network_shape, far_from_start, write_network
ALONE = Topology(RankGrid(1, 1, 1), 0, None, None, None)


def write_tokenizer(path: Path) -> None:
    """Byte-level BPE with some merges; ids 0 to 255 are those of the tiny corpus too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "the weights of the mixture follow the losses of the domains and the tokens in them"
    tokenizer.train_from_iterator([words] * 3, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(path))


def model_fields(tokenizer_file: Path, **changes: Any) -> dict[str, Any]:
    fields = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "pos_emb": "rotary",
        "rotary_pct": 0.25,
        "no_weight_tying": True,
        "gpt_j_residual": True,
        "tokenizer_type": "HFTokenizer",
        "vocab_file": str(tokenizer_file),
    }
    return {**fields, **changes}


def export(source: Path, output: Path, *flags: str) -> None:
    export_main(["--input_dir", str(source), "--output_dir", str(output), *flags])


def refusal(main, arguments: list[str], capsys) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def our_logits(checkpoint: Path, tokens: torch.Tensor, vocab_size: int = VOCAB_SIZE):
    shape = settings_of(checkpoint).shape(vocab_size)
    model = GPT2Model(shape, seed=1).eval()
    load_module_weights(model, checkpoint, ALONE)
    with torch.no_grad():
        return model(tokens)


def their_logits(folder: Path, tokens: torch.Tensor):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    with torch.no_grad():
        return model(tokens).logits


def some_tokens(length: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCAB_SIZE, (2, length), generator=generator)


def write_their_model(folder: Path, tokenizer_file: Path, *, rows: int) -> None:
    """A Pythia-like folder as transformers writes it, with padding rows."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.GPTNeoXConfig(
        vocab_size=rows,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=48,
        initializer_range=0.3,
        rotary_pct=0.5,
        use_parallel_residual=False,
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
