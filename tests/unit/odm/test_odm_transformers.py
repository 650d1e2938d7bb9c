import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from odm import MixtureController, MixtureSchedule, make_mixer  # noqa: E402
from odm.integrations.torch_data import HeldOutSamples, MixtureIterableDataset  # noqa: E402
from odm.integrations.transformers_trainer import (  # noqa: E402
    DomainLossRecorder,
    MixtureCallback,
)

DOMAINS = ["constant", "random"]


class Tokens(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index].clone()}


def datasets():
    generator = torch.Generator().manual_seed(0)
    return [
        Tokens(torch.full((40, 16), 3)),
        Tokens(torch.randint(0, 32, (40, 16), generator=generator)),
    ]


def tiny_model():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            use_cache=False,
        )
    )


def controller(method="smoothed_mean", **options):
    return MixtureController(DOMAINS, make_mixer(method), MixtureSchedule(3, 2), **options)


def trainer_for(mixture, folder, *, max_steps, first_step=1, **options):
    recorder = DomainLossRecorder(2)
    callback = MixtureCallback(mixture, recorder, **options)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=5,
        save_steps=10,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        ignore_data_skip=True,
        seed=0,
    )
    data = MixtureIterableDataset(
        mixture,
        datasets(),
        batch_size=8,
        num_steps=max_steps + 2 - first_step,
        first_step=first_step,
    )
    return transformers.Trainer(
        model=tiny_model(),
        args=arguments,
        train_dataset=data,
        data_collator=recorder.collate,
        compute_loss_func=recorder.loss_function,
        callbacks=[callback],
    )


def test_recorder_attributes_losses_of_a_mixed_batch_to_their_domains():
    recorder = DomainLossRecorder(3)
    samples = [
        {"domain_ids": domain, "input_ids": torch.zeros(4).long(), "labels": torch.tensor(labels)}
        for domain, labels in [(2, [0, 1, 1, -100]), (0, [0, 0, 0, 0]), (2, [0, 1, -100, -100])]
    ]
    batch = recorder.collate(samples)
    assert "domain_ids" not in batch
    logits = torch.zeros(3, 4, 2, requires_grad=True)
    with torch.no_grad():
        logits[:, :, 1] = 1.0
    loss = recorder.loss_function({"logits": logits}, batch["labels"])
    low, high = np.log1p(np.exp(-1.0)), np.log1p(np.exp(1.0))  # losses of targets 1 and 0
    assert loss.item() == pytest.approx((3 * low + 3 * high) / 6, rel=1e-6)
    signal = recorder.take()
    np.testing.assert_allclose(signal.mean_loss(), [high, np.nan, low], rtol=1e-6)
    assert signal.token_count.tolist() == [3, 0, 3]
    assert signal.sample_count.tolist() == [1, 0, 2]


def test_samples_without_a_domain_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="set remove_unused_columns=False"):
        DomainLossRecorder(2).collate([{"input_ids": [1], "labels": [1]}])


def test_recorder_does_not_count_evaluation():
    recorder = DomainLossRecorder(2)
    with torch.no_grad():
        recorder.loss_function({"logits": torch.zeros(1, 4, 2)}, torch.zeros(1, 4).long())
    with pytest.raises(ValueError, match="no loss was recorded"):
        recorder.take()


def test_trainer_learns_the_mixture_and_saves_and_resumes_it(tmp_path):
    pytest.importorskip("accelerate")  # transformers.Trainer needs it
    mixture = controller()
    trainer = trainer_for(mixture, tmp_path, max_steps=30)
    trainer.train()
    assert mixture.weights[1] > 0.7, "random text keeps a high loss, so it is drawn more"
    logged = [line for line in trainer.state.log_history if "mixture/random" in line]
    assert logged[-1]["mixture/random"] > logged[0]["mixture/random"]

    saved = json.loads((tmp_path / "checkpoint-20" / "mixture.json").read_text())
    assert saved["step"] == 20
    assert sum(saved["cursors"]) == 20 * 8, "plans read ahead are not counted"

    resumed = controller()
    MixtureCallback(resumed, DomainLossRecorder(2)).load(tmp_path / "checkpoint-20")
    assert resumed.cursors.tolist() == saved["cursors"]
    again = trainer_for(resumed, tmp_path, max_steps=30, first_step=21)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert resumed.state_dict()["step"] == 30
    np.testing.assert_allclose(resumed.weights, mixture.weights, atol=0.05)


def test_trainer_follows_held_out_losses_and_saves_what_was_measured(tmp_path):
    pytest.importorskip("accelerate")
    mixture = controller(reward="heldout")
    # held-out text of the domains is exchanged, so training losses would move the weights apart
    held_out = HeldOutSamples(datasets()[::-1], num_samples=4, num_parts=2)
    trainer = trainer_for(mixture, tmp_path, max_steps=20, held_out=held_out, held_out_interval=2)
    trainer.train()
    assert mixture.weights[0] > 0.7, "the random text is held out in domain 0"
    assert trainer.model.training

    saved = json.loads((tmp_path / "checkpoint-10" / "mixture.json").read_text())
    assert saved["held_out"]["visits"] == 5
    again = HeldOutSamples(datasets()[::-1], num_samples=4, num_parts=2)
    resumed = controller(reward="heldout")
    MixtureCallback(resumed, DomainLossRecorder(2), held_out=again).load(tmp_path / "checkpoint-10")
    assert again.state_dict() == saved["held_out"]


def test_a_reward_without_its_samples_and_samples_without_a_reward_are_refused():
    recorder = DomainLossRecorder(2)
    with pytest.raises(ValueError, match="reward is heldout; give held_out=HeldOutSamples"):
        MixtureCallback(controller(reward="heldout"), recorder)
    samples = HeldOutSamples(datasets(), num_samples=4)
    with pytest.raises(ValueError, match="held_out is given, but the controller's reward is train"):
        MixtureCallback(controller(), recorder, held_out=samples)


@pytest.mark.parametrize("interval", [1, 3])
def test_trainer_follows_the_held_out_curves_of_learning_curve(tmp_path, interval):
    pytest.importorskip("accelerate")
    mixture = controller("learning_curve", reward="heldout", total_steps=40)
    samples = HeldOutSamples(datasets(), num_samples=4, num_parts=2)
    options = {"held_out": samples, "held_out_interval": interval}
    trainer_for(mixture, tmp_path, max_steps=40, **options).train()
    assert mixture.weights[0] > 0.6, "only the constant text can be learnt"


@pytest.mark.parametrize("domain", [-1, 2, 7])
def test_a_sample_of_no_known_domain_is_refused_before_its_loss_is_counted(domain):
    sample = {"input_ids": [1, 2], "labels": [1, 2], "domain_ids": domain}
    with pytest.raises(ValueError, match=f"domain {domain}, the recorder has 2 domains"):
        DomainLossRecorder(2).collate([sample])


def test_a_batch_without_labels_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="no labels; give each sample labels"):
        DomainLossRecorder(2).collate([{"input_ids": [1, 2], "domain_ids": 0}])


def test_parts_for_other_numbers_of_domains_are_refused():
    mixture = controller()
    count = mixture.num_domains
    with pytest.raises(ValueError, match=f"recorder is for {count + 1} domains"):
        MixtureCallback(mixture, DomainLossRecorder(count + 1))
    held_out = HeldOutSamples([[1]] * (count + 1))
    with pytest.raises(ValueError, match=f"held_out is for {count + 1} domains"):
        MixtureCallback(controller(reward="heldout"), DomainLossRecorder(count), held_out=held_out)


def test_a_folder_without_a_state_is_not_called_damaged(tmp_path):
    mixture = controller()
    callback = MixtureCallback(mixture, DomainLossRecorder(mixture.num_domains))
    with pytest.raises(ValueError, match="name a checkpoint folder that a run"):
        callback.load(tmp_path)
