import json
from pathlib import Path

import pytest
import yaml

from tools.import_mixture import main

REGMIX = """\
train:
  train_the_pile_arxiv: 0.25
  train_the_pile_pile_cc: 2.9e-06
valid:
  valid_the_pile_pile_cc: 1.0
model_name: tinyllama_1_1b
"""
TABLE = "index,train_the_pile_arxiv,train_the_pile_github\n1,0.0,1.0\n2,0.25,0.75\n"
OLMIX_PROPOSAL = '[{"domain": "dclm:code", "weight": 0.5}, {"domain": "arxiv", "weight": 0.5}]'
OLMIX_EXPERIMENT = """\
name: heavy
mix:
  dclm:
    weight: 0.8
    code: {weight: 0.625, repetition_factor: 1.0}
    science: {weight: 0.375}
  arxiv: {weight: 0.2, repetition_factor: 1.5}
"""
SHARED = Path(__file__).resolve().parents[3] / "../shared/data"
PUBLISHED = SHARED / "regmix/train_mixture_1m.csv"


def imported(tmp_path, name, text, *options):
    (tmp_path / name).write_text(text)
    main([str(tmp_path / name), "-o", str(tmp_path / "out.yml"), *options])
    return yaml.safe_load((tmp_path / "out.yml").read_text())


@pytest.mark.parametrize(
    ("name", "text", "options", "tool", "weights"),
    [
        ("a.yaml", REGMIX, (), "RegMix", {"the_pile_arxiv": 0.25, "the_pile_pile_cc": 2.9e-6}),
        (
            *("a.csv", TABLE, ("--row", "2")),
            *("RegMix", {"the_pile_arxiv": 0.25, "the_pile_github": 0.75}),
        ),
        ("a.json", OLMIX_PROPOSAL, (), "Olmix", {"dclm:code": 0.5, "arxiv": 0.5}),
        (
            *("a.yaml", OLMIX_EXPERIMENT, ()),
            *("Olmix", {"dclm:code": 0.5, "dclm:science": 0.3, "arxiv": 0.2}),
        ),
    ],
)
def test_weights_and_their_origin_are_written(tmp_path, name, text, options, tool, weights):
    content = imported(tmp_path, name, text, *options)
    assert content["weights"] == pytest.approx(weights)
    provenance = content["provenance"]
    assert (provenance["tool"], provenance["file"]) == (tool, name)
    assert len(provenance["sha256"]) == 64
    assert provenance.get("row") == (2 if options else None)


def test_the_same_input_makes_the_same_bytes(tmp_path):
    imported(tmp_path, "a.yaml", REGMIX)
    first = (tmp_path / "out.yml").read_bytes()
    imported(tmp_path, "a.yaml", REGMIX)
    assert (tmp_path / "out.yml").read_bytes() == first


def test_domains_get_other_names_and_equal_names_are_added(tmp_path):
    options = ("--rename", "dclm:code=web", "--rename", "dclm:science=web")
    content = imported(tmp_path, "a.yaml", OLMIX_EXPERIMENT, *options)
    assert content["weights"] == pytest.approx({"web": 0.8, "arxiv": 0.2})


def test_a_json_file_has_the_same_content(tmp_path):
    (tmp_path / "a.yaml").write_text(REGMIX)
    main([str(tmp_path / "a.yaml"), "-o", str(tmp_path / "out.json")])
    content = json.loads((tmp_path / "out.json").read_text())
    assert content == imported(tmp_path, "a.yaml", REGMIX)


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.yaml", "a: 1\nb: 2\n", (), "a.yaml: unknown format; known are of RegMix"),
        ("a.json", "[]", (), "a.json: unknown format"),
        ("a.json", "[1, 2]", (), "a.json: unknown format"),
        ("a.csv", "x,y\n1,2\n", ("--row", "1"), "a.csv: unknown format; a table of mixtures has"),
        ("a.csv", TABLE, (), "choose a mixture of the table by --row, its index: 1 to 2"),
        ("a.csv", TABLE, ("--row", "3"), "there is no row 3; choose"),
        ("a.yaml", REGMIX, ("--row", "3"), "--row 3 is for a table of mixtures"),
        ("a.yaml", REGMIX.replace("0.25", "-1"), (), "weight of the_pile_arxiv must be"),
        ("a.json", OLMIX_PROPOSAL.replace("arxiv", "dclm:code"), (), "a name that occurs once"),
        ("a.yaml", REGMIX, ("--rename", "x=y"), "--rename: 'x=y' must be OLD=NEW with a domain of"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, capsys, name, text, options, message):
    with pytest.raises(SystemExit) as end:
        imported(tmp_path, name, text, *options)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.yml").exists()


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published table is not here")
def test_a_mixture_of_the_published_table_is_read(tmp_path):
    main([str(PUBLISHED), "--row", "2", "-o", str(tmp_path / "out.yml")])
    weights = yaml.safe_load((tmp_path / "out.yml").read_text())["weights"]
    assert (len(weights), weights["the_pile_github"]) == (17, 0.304)
    assert sum(weights.values()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "a.csv",
            "index,train_x\nabc,1\n1,1\n",
            "index 'abc' must be a whole number that occurs once",
        ),
        ("a.csv", "index,train_x\n1,1\n1,2\n", "index '1' must be a whole number that occurs once"),
        ("a.csv", "index,train_x\n,1\n", "index '' must be a whole number that occurs once"),
        ("a.csv", 'index,train_x\n"1,1\n', "malformed CSV: unexpected end of data"),
        ("a.csv", f"index,train_x\n{'1' * 140_000},1\n", "a.csv: "),
        (
            "a.json",
            '[{"domain": "a\\nb", "weight": 1}]',
            "must be a name that occurs once, on one line",
        ),
        (
            "a.json",
            '[{"domain": "\\ud800", "weight": 1}]',
            "must be a name that occurs once, on one line",
        ),
    ],
)
def test_an_odd_table_or_name_is_one_line_and_nothing_is_written(
    tmp_path, capsys, name, text, problem
):
    with pytest.raises(SystemExit, match="2"):
        imported(tmp_path, name, text)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{tmp_path / name}: " in error
    assert problem in error
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_file_that_is_read_is_not_replaced(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(OLMIX_PROPOSAL)
    with pytest.raises(SystemExit, match="2"):
        main([str(path), "-o", str(tmp_path / "." / "a.json")])
    assert "is the file to read; name another one with -o" in capsys.readouterr().err
    assert path.read_text() == OLMIX_PROPOSAL
