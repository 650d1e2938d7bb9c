"""The demo's stages and its last words; tests/distributed/test_readme_commands.py runs it whole."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tools import demo, demo_report
from tools.demo import Stage, run_stage, stages

ENVIRON = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    demo.DEMO.mkdir()
    return tmp_path


def stage(code: str, **changes) -> Stage:
    command = f"python -c '{code}'"
    return Stage(
        "thing", command, **{"inputs": (Path("in"),), "outputs": (Path("out"),), **changes}
    )


@pytest.mark.parametrize(
    ("argument", "code"), [("--help", 0), ("--workers", 2), ("some_folder", 2)]
)
def test_what_the_demo_does_not_know_does_not_start_it(folder, monkeypatch, argument, code):
    monkeypatch.setattr(demo, "stages", lambda: pytest.fail("the demo was started"))
    with pytest.raises(SystemExit) as end:
        demo.main([argument])
    assert end.value.code == code


WRITES = 'open("out", "a").write("x")'


def test_a_stage_runs_once_and_again_when_its_input_changes(folder):
    (folder / "in").write_text("1")
    for content, runs in (("1", "x"), ("1", "x"), ("2", "xx")):
        (folder / "in").write_text(content)
        assert run_stage(stage(WRITES), ENVIRON) == 0
        assert (folder / "out").read_text() == runs


def test_a_stage_that_fails_or_makes_nothing_is_not_done(folder, capsys):
    (folder / "in").write_text("1")
    assert run_stage(stage("raise SystemExit(3)"), ENVIRON) == 3
    assert run_stage(stage("pass"), ENVIRON) == 1
    assert "did not make out;" in capsys.readouterr().err
    assert not stage("pass").is_done()


@pytest.mark.parametrize(("content", "steps"), [("1", "ab"), ("2", "b")])
def test_an_interrupted_stage_goes_on_unless_its_inputs_have_changed(
    folder, capsys, content, steps
):
    def training(letter: str) -> None:
        code = (
            'import os; os.makedirs("work", exist_ok=True); letter = os.environ["LETTER"]; '
            'open("work/steps", "a").write(letter); letter == "b" and open("work/end", "w")'
        )
        environ = {**ENVIRON, "LETTER": letter}
        run_stage(stage(code, outputs=(Path("work/end"),), work=Path("work")), environ)

    (folder / "in").write_text("1")
    training("a")
    (folder / "in").write_text(content)
    training("b")
    assert (folder / "work/steps").read_text() == steps
    is_aside = content != "1"
    assert (folder / "work.before").exists() is is_aside
    assert ("the old work is now work.before" in capsys.readouterr().out) is is_aside


def test_an_output_with_a_time_in_its_name_is_found_by_its_pattern(folder):
    (folder / "in").write_text("1")
    code = 'open("result_12-31.json", "w")'
    timed = stage(code, outputs=(Path("result_*.json"),))
    assert [str(path) for path in timed.missing()] == ["result_*.json"]
    assert run_stage(timed, ENVIRON) == 0
    assert timed.is_done()


def test_every_input_is_made_by_an_earlier_stage_or_is_there(monkeypatch):
    monkeypatch.chdir(demo.ROOT)
    made = {demo.CONFIG, demo.PROMPTS}
    for each in stages():
        for path in each.inputs:
            assert path in made or path.parent in made, f"{each.name} reads {path}"
        made.update(each.outputs)
    assert len({each.name for each in stages()}) == len(stages())


def test_packages_of_the_last_stages_are_asked_for_before_the_first(monkeypatch, capsys):
    monkeypatch.setattr(demo, "NEEDED_PACKAGES", ("no_such_package",))
    monkeypatch.setattr(demo, "stages", lambda: pytest.fail("a stage was looked at"))
    assert demo.main([]) == 2
    assert "requirements-eval.txt" in capsys.readouterr().err


def test_the_table_joins_run_log_and_results():
    def event(kind, iteration, **more):
        return {"event": kind, "iteration": iteration, **more}

    events = [
        event("train", 1, weights={"a": 0.5, "bb": 0.5}, epochs={"a": 0.0, "bb": 0.0}),
        event("validation", 1, domains={"a": {"loss": 5.0}, "bb": {"loss": 6.0}}),
        event("train", 2, weights={"a": 0.25, "bb": 0.75}, epochs={"a": 0.1, "bb": 1.25}),
        event("validation", 2, domains={"a": {"loss": 4.0}, "bb": {"loss": 5.5}}),
        event("tasks", 2),
    ]
    domains = {
        "a": {"perplexity": 55.5, "bits_per_byte": 1.5},
        "bb": {"perplexity": 250.0, "bits_per_byte": None},
    }
    losses = {"iteration": 2, "test": {"domains": domains}}
    assert demo_report.domain_table(events, losses).splitlines() == [
        "domain          weight  epochs  validation loss  test perplexity  bits per byte",
        "a       0.500 -> 0.250    0.10   5.000 -> 4.000            55.50          1.500",
        "bb      0.500 -> 0.750    1.25   6.000 -> 5.500           250.00              -",
        "(validation at iterations 1 and 2, test at 2)",
    ]


def test_accuracy_stands_beside_chance():
    results = {
        "results": {"t": {"acc,none": 0.5, "acc_stderr,none": 0.0278}},
        "n-samples": {"t": {"original": 320, "effective": 320}},
        "configs": {"t": {"metadata": {"chance": 0.25}}},
    }
    line = "t: 0.500 of 320 questions right (+- 0.028); guessing gives 0.25"
    assert demo_report.task_line(results, "t") == line


def test_samples_show_prompt_and_text(tmp_path):
    path = tmp_path / "samples.jsonl"
    records = [{"context": "Once", "text": " upon\n a time"}, {"context": "x", "text": None}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert demo_report.samples(path) == "  [Once] upon\n   a time\n\n  [x]"


def test_the_newest_result_counts_whatever_its_name(tmp_path):
    for name, moment in (("r_2.json", 1), ("r_1.json", 2), ("s_3.json", 3)):
        (tmp_path / name).write_text(json.dumps(name))
        os.utime(tmp_path / name, (moment, moment))
    assert demo_report.newest(tmp_path, "r_*.json") == "r_1.json"
