import pytest

BETAS = "optimizer.params.betas must be a list of numbers, two in [0, 1)"


def adam(**params):
    return {"optimizer": {"type": "Adam", "params": params}}


def test_the_default_is_adamw_with_the_usual_numbers(make_config):
    config = make_config()
    assert config.optimizer.type == "adam"
    assert config.optimizer.learning_rate == 1e-3
    assert config.optimizer.betas == (0.9, 0.999)
    assert config.optimizer.eps == 1e-8
    assert config.optimizer.weight_decay == 0.1
    assert config.optimizer.gradient_clipping == 1.0


def test_numbers_in_text_are_numbers(make_config):
    config = make_config(**adam(lr="6e-4", eps="1e-8", betas=["0.9", "0.95"]))
    assert (config.optimizer.learning_rate, config.optimizer.eps) == (6e-4, 1e-8)
    assert config.optimizer.betas == (0.9, 0.95)


@pytest.mark.parametrize("name", ["adam", "AdamW", "cpu_adam", "CPU_Torch_Adam"])
def test_every_adam_is_torchs_adamw(make_config, name):
    assert make_config(optimizer={"type": name, "params": {}}).optimizer.type == "adam"


def test_sgd_keeps_its_momentum(make_config):
    params = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
    config = make_config(optimizer={"type": "SGD", "params": params})
    assert config.optimizer.type == "sgd"
    expected = {"momentum": 0.9, "dampening": 0.0, "nesterov": True}
    assert config.optimizer.options == expected


@pytest.mark.parametrize("name", ["OneBitAdam", "sm3", "madgrad_wd", "muon"])
def test_other_optimizers_are_refused(problem, name):
    message = problem(optimizer={"type": name, "params": {}})
    assert message.startswith(f"optimizer.type {name!r}: ")
    assert message.endswith("; use Adam, Lion or SGD")


def test_lion_has_betas_of_its_own(make_config):
    config = make_config(optimizer={"type": "Lion", "params": {"lr": 1e-4}})
    assert (config.optimizer.type, config.optimizer.betas) == ("lion", (0.9, 0.99))
    config = make_config(optimizer={"type": "lion", "params": {"betas": [0.95, 0.98]}})
    assert config.optimizer.betas == (0.95, 0.98)


def test_8_bits_are_for_adam(make_config, problem):
    assert make_config(use_bnb_optimizer=True).optimizer.use_bnb_optimizer
    message = problem(use_bnb_optimizer=True, optimizer={"type": "SGD", "params": {}})
    assert message == "use_bnb_optimizer is for Adam, the optimizer is sgd; remove the key"


def test_outer_keys_stand_in_for_the_section(make_config):
    config = make_config(lr=0.5, optimizer_type="sgd")
    assert (config.optimizer.learning_rate, config.optimizer.type) == (0.5, "sgd")
    config = make_config(**adam(weight_decay=0.3, max_grad_norm=2))
    assert (config.optimizer.weight_decay, config.optimizer.gradient_clipping) == (0.3, 2.0)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({**adam(lr=0.1), "lr": 0.2}, "lr is 0.2, optimizer.params.lr is 0.1; keep one"),
        (
            {**adam(weight_decay=0.1), "weight_decay": 0.2},
            "weight_decay is 0.2, optimizer.params.weight_decay is 0.1; keep one",
        ),
        (
            {**adam(), "optimizer_type": "sgd"},
            "optimizer_type is 'sgd', optimizer.type is 'Adam'; keep one",
        ),
        ({"optimizer": {"params": {"lr": 1}}}, "optimizer needs a type, such as 'Adam'"),
        (
            {"optimizer": {"type": "Foo"}},
            "optimizer.type 'Foo': it is unknown; use Adam, Lion or SGD",
        ),
        (
            {"optimizer": {"type": "Adam", "parms": {}}},
            "unknown key 'optimizer.parms'; did you mean 'params'?",
        ),
        (
            {"optimizer": {"type": "Adam", "params": 3}},
            "optimizer.params must be a section (key: value pairs), got 3",
        ),
        (adam(lr="fast"), "optimizer.params.lr must be a number, at least 0, got 'fast'"),
        (adam(lr=-1), "optimizer.params.lr must be a number, at least 0, got -1"),
        (adam(betas=[0.9]), f"{BETAS}, got [0.9]"),
        (adam(betas=[0.9, 1]), f"{BETAS}, got [0.9, 1]"),
        (adam(eps=-1), "optimizer.params.eps must be a number, at least 0, got -1"),
        (
            adam(adam_w_mode=False),
            "optimizer.params.adam_w_mode: false is not supported; the optimizer is AdamW",
        ),
        (
            {"optimizer": {"type": "SGD", "params": {"nesterov": True}}},
            "optimizer.params.nesterov needs momentum above 0 and dampening 0",
        ),
        (
            {
                "optimizer": {
                    "type": "SGD",
                    "params": {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
                }
            },
            "optimizer.params.nesterov needs momentum above 0 and dampening 0",
        ),
        (
            {"optimizer": {"type": "SGD", "params": {"momentum": 1}}},
            "optimizer.params.momentum must be a number, in [0, 1), got 1",
        ),
        ({"weight_decay": -1}, "weight_decay must be at least 0, got -1.0"),
        (
            {"gradient_clipping": -1},
            "gradient_clipping must be at least 0, got -1.0; 0 clips nothing",
        ),
        ({"hidden_dropout": 1}, "hidden_dropout must be in [0, 1), got 1.0"),
        ({"z_loss": -0.1}, "z_loss must be at least 0, got -0.1"),
    ],
)
def test_wrong_numbers_are_refused(problem, keys, expected):
    assert problem(**keys) == expected


def test_an_unknown_parameter_lists_the_known_ones(problem):
    message = problem(**adam(beta=0.9))
    assert message == "unknown key 'optimizer.params.beta'; did you mean 'betas'?"
    message = problem(**adam(momentum_of_sgd=0.9))
    assert message.startswith(
        "unknown key 'optimizer.params.momentum_of_sgd'; known keys: adam_w_mode, betas"
    )


@pytest.mark.parametrize(
    ("keys", "decay_iters", "warmup_iters"),
    [
        ({}, 100, 1.0),
        ({"lr_decay_iters": 50, "warmup": 0.03}, 50, 1.5),
        ({"lr_decay_fraction": 0.555}, 55, 0.55),
        ({"warmup": 0}, 100, 0.0),
    ],
)
def test_the_schedule_follows_its_keys(make_config, keys, decay_iters, warmup_iters):
    config = make_config(**keys)
    assert config.schedule.decay_iters == decay_iters
    assert config.schedule.warmup_iters == pytest.approx(warmup_iters, rel=1e-12)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"lr_decay_iters": 5, "lr_decay_fraction": 0.5},
            "lr_decay_fraction and lr_decay_iters are both set; keep one",
        ),
        ({"lr_decay_fraction": 2}, "lr_decay_fraction must be in (0, 1], got 2.0"),
        ({"lr_decay_fraction": -1e308}, "lr_decay_fraction must be in (0, 1], got -1e+308"),
        ({"lr_decay_iters": 0}, "lr_decay_iters must be at least 1, got 0"),
        ({"warmup": 5}, "warmup must be in [0, 1], got 5.0"),
        ({"min_lr": 0.5}, "min_lr must be at most the learning rate 0.001, got 0.5"),
        (
            {"override_lr_scheduler": True, "use_checkpoint_lr_scheduler": True},
            "override_lr_scheduler and use_checkpoint_lr_scheduler are both set; keep one",
        ),
    ],
)
def test_wrong_schedules_are_refused(problem, keys, expected):
    assert problem(**keys) == expected


@pytest.mark.parametrize(
    ("keys", "decay_iters"),
    [
        ({"lr_wsd_decay_iters": 30}, 30),
        ({"lr_wsd_decay_fraction": 0.25}, 25),
        ({"lr_wsd_decay_fraction": 0.25, "lr_decay_iters": 50}, 12),
        ({"lr_wsd_decay_fraction": 0.001}, 1),
        ({"lr_wsd_decay_iters": 99, "warmup": 0.01}, 99),
    ],
)
def test_wsd_decays_at_the_end_of_the_schedule(make_config, keys, decay_iters):
    config = make_config(lr_decay_style="wsd", **keys)
    assert config.schedule.wsd_decay_iters == decay_iters
    assert config.schedule.wsd_decay_style == "exponential"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {},
            "lr_decay_style wsd needs one of lr_wsd_decay_iters and lr_wsd_decay_fraction, got "
            "neither",
        ),
        (
            {"lr_wsd_decay_iters": 5, "lr_wsd_decay_fraction": 0.5},
            "lr_decay_style wsd needs one of lr_wsd_decay_iters and lr_wsd_decay_fraction, got "
            "both",
        ),
        ({"lr_wsd_decay_iters": 0}, "lr_wsd_decay_iters must be at least 1, got 0"),
        ({"lr_wsd_decay_fraction": 1.5}, "lr_wsd_decay_fraction must be in (0, 1], got 1.5"),
        (
            {"lr_wsd_decay_fraction": 0.95, "warmup": 0.1},
            "lr_wsd_decay_fraction: the decay of 95 iterations and the warm-up of 10 are longer "
            "than the schedule of 100 (lr_decay_iters); shorten one",
        ),
        (
            {"lr_decay_style": "cosine", "lr_wsd_decay_iters": 5},
            "lr_wsd_decay_iters needs lr_decay_style wsd, got cosine; remove the key",
        ),
        (
            {"lr_decay_style": "linear", "lr_wsd_decay_style": "linear"},
            "lr_wsd_decay_style needs lr_decay_style wsd, got linear; remove the key",
        ),
    ],
)
def test_wrong_wsd_schedules_are_refused(problem, keys, expected):
    assert problem(**{"lr_decay_style": "wsd", **keys}) == expected
