from odm.methods import METHODS
from tools.benchmark.mixing_updates import main


def test_every_method_that_learns_from_training_losses_is_timed(capsys):
    assert main(["--domains", "3", "--updates", "3"]) == 0
    rows = [line.rsplit(maxsplit=3) for line in capsys.readouterr().out.splitlines()[2:-1]]
    assert [row[0] for row in rows] == [
        *(name for name, method in METHODS.items() if method.signal != "held_out"),
        "learning_curve + guard",
        "learning_curve + heldout",
    ]
    assert all(0 < float(row[2]) <= float(row[3]) for row in rows)
