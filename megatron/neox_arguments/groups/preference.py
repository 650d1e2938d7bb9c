"""Data and losses of preference training, which this program refuses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NeoXArgsPreference:
    """Labels, rewards and pairs of preference training. Refused."""

    label_data_paths: list[str] | None = None
    """Token labels of the training data, in older files."""

    train_label_data_paths: list[str] | None = None
    """Token labels of the train data."""

    train_reward_data_paths: list[str] | None = None
    """Rewards of the train data."""

    valid_label_data_paths: list[str] | None = None
    """Token labels of the valid data."""

    valid_reward_data_paths: list[str] | None = None
    """Rewards of the valid data."""

    test_label_data_paths: list[str] | None = None
    """Token labels of the test data."""

    test_reward_data_paths: list[str] | None = None
    """Rewards of the test data."""

    pos_train_data_paths: list[str] | None = None
    """Preferred train data."""

    pos_train_label_data_paths: list[str] | None = None
    """Token labels of the preferred train data."""

    pos_valid_data_paths: list[str] | None = None
    """Preferred valid data."""

    pos_valid_label_data_paths: list[str] | None = None
    """Token labels of the preferred valid data."""

    pos_test_data_paths: list[str] | None = None
    """Preferred test data."""

    pos_test_label_data_paths: list[str] | None = None
    """Token labels of the preferred test data."""

    neg_train_data_paths: list[str] | None = None
    """Rejected train data."""

    neg_train_label_data_paths: list[str] | None = None
    """Token labels of the rejected train data."""

    neg_valid_data_paths: list[str] | None = None
    """Rejected valid data."""

    neg_valid_label_data_paths: list[str] | None = None
    """Token labels of the rejected valid data."""

    neg_test_data_paths: list[str] | None = None
    """Rejected test data."""

    neg_test_label_data_paths: list[str] | None = None
    """Token labels of the rejected test data."""

    dpo_fp32: bool = True
    """DPO loss in float32."""

    dpo_reference_free: bool = False
    """DPO without a reference model."""

    dpo_beta: float = 0.1
    """Temperature of DPO."""

    kto_fp32: bool = True
    """KTO loss in float32."""

    kto_desirable_weight: float = 1.0
    """Weight of desirable samples in KTO."""

    kto_undesirable_weight: float = 1.0
    """Weight of undesirable samples in KTO."""

    kto_beta: float = 0.1
    """Temperature of KTO."""

    fp32_reinforce: bool = True
    """REINFORCE loss in float32."""

    kl_impl: str = "mse"
    """Estimate of the divergence from the reference in REINFORCE."""

    kl_div_beta: float = 0.1
    """Weight of that divergence."""

    reinforce_leave_one_out: bool = False
    """Baseline of the other samples in REINFORCE."""

    online_dataserver_ips: str | list[str] = "localhost"
    """Servers of samples in REINFORCE."""

    online_dataserver_ports: int | list[int] = 10000
    """Ports of those servers."""

    serve_model_weights: bool = False
    """Hands weights to a generating program in REINFORCE."""

    weight_server_port: int | list[int] = 6000
    """Ports for that."""
