"""Mixing methods with the options that they cannot do without, for tests over all methods."""

from odm import Mixer, make_mixer
from odm.methods import METHODS, Method


def mixer_for(method: str, num_domains: int, **options: object) -> Mixer:
    """Makes a mixer; what it requires and is not given is alike for all domains.

    Args:
        method: Name of the method.
        num_domains: Number of domains K.
        options: Options of the method.
    """
    alike = {
        "reference_losses": [1.0] * num_domains,
        "target_losses": [1.0] * num_domains,
        "transfer_matrix": [
            [1.0 if i == j else 0.25 for j in range(num_domains)] for i in range(num_domains)
        ],
    }
    required = METHODS.get(method, Method()).required
    return make_mixer(method, **{**{name: alike[name] for name in required}, **options})
