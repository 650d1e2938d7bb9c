"""The benchmark of mixing methods, less its training runs: plan, texts, report, refusals."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from megatron.tokenizer import build_tokenizer
from tools.benchmark.mixing_quality import PLAN, main
from tools.benchmark.quality.answers import answers
from tools.benchmark.quality.campaign import Campaign
from tools.benchmark.quality.measures import curve, iterations_ratio, measures, pairs_of
from tools.benchmark.quality.plan import Plan, PlanError, Run, read_plan
from tools.benchmark.quality.report import report
from tools.benchmark.quality.results import read_result, result_path, write_result
from tools.benchmark.quality.suites import Corpus
from tools.benchmark.quality.texts import made_documents, whole_words

DOMAINS = {
    "prose": {"corpus": ["prose"]},
    "half": {"corpus": ["prose"], "part": [1, 2]},
    "counting": {"made": "counting", "train_bytes": 4000},
    "base64": {"made": "base64", "train_bytes": 4000, "noise": True},
    "words": {"made": "words", "train_bytes": 4000, "noise": True},
}


def plan_of(**changes: Any) -> dict[str, Any]:
    """A plan with three arms, the last of which is the average of the second."""
    static = {"data_sampling_method": "static"}
    plan: dict[str, Any] = {
        "base": {
            **{"num_layers": 1, "hidden_size": 16, "num_attention_heads": 1},
            **{"seq_length": 16, "max_position_embeddings": 16, "train_iters": 6},
            **{"train_micro_batch_size_per_gpu": 4, "mixed_batches": True},
            **{"optimizer": {"type": "Adam", "params": {"lr": 0.01}}, "checkpoint_factor": 2},
        },
        "texts": {"S": {"seed": 1, "domains": DOMAINS}},
        "arms": {
            "uniform": {"settings": static},
            "natural": {"settings": static, "natural": True},
            "moving": {"settings": {"data_sampling_method": "smoothed_mean"}},
            "frozen": {"settings": static, "average_of": "moving"},
        },
        "suites": {
            "S": {
                "text": "S",
                "seeds": {"uniform": [1, 2, 3], "moving": [1, 2], "natural": [1], "frozen": [1]},
            },
            "L": {
                "text": "S",
                "on_request": True,
                "settings": {"num_layers": 2},
                "seeds": {"uniform": [1]},
            },
        },
    }
    return {**plan, **changes}


def written(folder: Path, plan: dict[str, Any]) -> Path:
    path = folder / "plan.yml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


@pytest.fixture
def plan(tmp_path) -> Plan:
    return read_plan(written(tmp_path, plan_of()))


def test_the_plan_of_the_repository_is_one():
    plan = read_plan(PLAN)
    main_runs = Counter(run.arm for run in plan.runs() if run.suite == "X")
    assert {arm for arm, number in main_runs.items() if number == 5} == {
        "uniform",
        "smoothed_mean",
        "learning_curve",
    }
    assert min(main_runs.values()) == 3
    assert len(plan.runs()) == 51
    later = plan.suites["X"].added
    assert later
    assert not set(later) & {run.arm for run in plan.runs()}
    assert not any(run.suite in ("T", "X10") for run in plan.runs())
    tuned = {domain for spec in plan.texts["T"].domains.values() for domain in spec.corpus}
    tested = [spec for spec in plan.texts["X"].domains.values() if spec.train_bytes is None]
    assert not tuned & {"code", "books", "encyclopedia", "abstracts", "mathqa"}
    assert len(tested) == 7


def test_runs_come_seed_by_seed_and_suites_on_request_only_by_name(plan):
    assert [run.name for run in plan.runs()] == [
        *("S/uniform/1", "S/moving/1", "S/natural/1", "S/frozen/1"),
        *("S/uniform/2", "S/moving/2", "S/uniform/3"),
    ]
    assert [run.name for run in plan.runs(["*/uniform/1"])] == ["S/uniform/1", "L/uniform/1"]


def test_added_arms_run_only_by_name_and_come_after_the_main_ones(tmp_path):
    changed = plan_of()
    changed["suites"]["S"]["added"] = {"natural_again": [1, 2]}
    changed["arms"]["natural_again"] = changed["arms"]["natural"]
    plan = read_plan(written(tmp_path, changed))
    assert plan.runs() == read_plan(written(tmp_path, plan_of())).runs()
    assert [run.name for run in plan.runs(["S/natural*"])] == [
        *("S/natural/1", "S/natural_again/1", "S/natural_again/2"),
    ]
    runs = plan.runs(["S/uniform/[12]", "S/natural_again/*"])
    text = report(plan, {run: result_of(run, offset=0.1 * (run.arm != "uniform")) for run in runs})
    assert "2 of 7 main runs are finished" in text
    assert "Added after the main runs: natural_again." in text
    assert "| natural_again | bits per byte | +0." in text


def test_a_digest_follows_what_decides_the_result(tmp_path, plan):
    run, frozen = Run("S", "uniform", 1), Run("S", "frozen", 1)
    assert plan.digest(run, "text") == plan.digest(run, "text")
    others = [plan.digest(Run("S", "uniform", 2), "text"), plan.digest(run, "other text")]
    others += [plan.digest(one, "text") for one in (Run("L", "uniform", 1), frozen)]
    changed = plan_of()
    changed["arms"]["moving"]["settings"]["data_sampling_smoothing_factor"] = 0.5
    other_plan = read_plan(written(tmp_path, changed))
    others.append(other_plan.digest(frozen, "text"))  # its source is another run now
    assert len({plan.digest(run, "text"), *others}) == len(others) + 1
    assert other_plan.digest(run, "text") == plan.digest(run, "text")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"arms": {}}, "suites.S.seeds.uniform: is not in arms"),
        ({"texts": {}}, "suites.S.text: S is not in texts"),
        (
            {"texts": {"S": {"seed": 1, "domains": {"a": {"made": "counting"}}}}},
            "texts.S.domains.a: text that is made needs train_bytes",
        ),
        (
            {"texts": {"S": {"seed": 1, "domains": {"a": {}}}}},
            "texts.S.domains.a: needs either corpus or made",
        ),
        ({"arms": {"uniform": {"seed": 1}}}, "not a field of this version"),
        (
            {"suites": {"S": {"text": "S", "seeds": {"moving": [1], "frozen": [1, 2]}}}},
            "suites.S.seeds.frozen: needs moving of the same suite with seeds [2]",
        ),
        (
            {"suites": {"S": {"text": "S", "seeds": {}, "added": {"frozen": [1]}}}},
            "suites.S.added.frozen: needs moving of the same suite with seeds [1]",
        ),
        (
            {"suites": {"S": {"text": "S", "seeds": {"moving": [1]}, "added": {"moving": [2]}}}},
            "suites.S.added.moving: is in seeds too",
        ),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line(tmp_path, change, expected):
    with pytest.raises(PlanError) as refused:
        read_plan(written(tmp_path, plan_of(**change)))
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


# texts


def first(kind: str, number: int, *, seed: int = 1, split: str = "train") -> list[str]:
    words = ["alpha", "beta", "gamma"]
    return list(islice(made_documents(kind, seed=seed, split=split, words=words), number))


@pytest.mark.parametrize("kind", ["base64", "words", "counting"])
def test_made_text_depends_on_seed_and_split_alone(kind):
    assert first(kind, 3) == first(kind, 5)[:3]
    assert len({*first(kind, 3), *first(kind, 3, seed=2), *first(kind, 3, split="test")}) == 9


def test_base64_is_uniform_over_64_characters():
    counts = Counter("".join(first("base64", 100)))
    assert len(counts) == 64
    assert all(abs(count - 3125) < 300 for count in counts.values())  # 5 standard deviations


def test_words_are_drawn_uniformly_with_a_blank_before_each():
    (text,) = first("words", 1)
    assert text.startswith(" ")
    assert Counter(text.split()).keys() == {"alpha", "beta", "gamma"}
    assert len(text.split()) == 400


def test_whole_words_are_one_token_after_a_blank():
    ids = {" the": [5], " no": [1, 2], " of": [7]}
    tokens = [" the", " no", " of", "the", " x", " 12", "\n", " caf\u00e9"]
    assert whole_words(lambda text: ids[text], tokens) == ["of", "the"]


# prepared text and refusals


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """One domain of 40 training documents, and a tokenizer of bytes and a few words."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("corpus")
    for split, number in (("train", 40), ("valid", 6), ("test", 6)):
        (folder / split).mkdir()
        lines = [
            json.dumps({"text": f"{split} says it again, {i} times. " * 9}) for i in range(number)
        ]
        (folder / split / "prose.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["train says it again, many times"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer-8k.json"))
    return folder


@pytest.fixture
def prepared(tmp_path, corpus) -> list[str]:
    """Options of a command whose text is prepared."""
    written(tmp_path, plan_of())
    places = {"plan": "plan.yml", "work": "work", "results": "results"}
    options = [part for key, name in places.items() for part in (f"--{key}", str(tmp_path / name))]
    assert main(["prepare", *options, "--corpus", str(corpus)]) == 0
    return options


def test_text_is_prepared_once_and_described(tmp_path, prepared, corpus):
    folder = tmp_path / "work/texts/S"
    described = json.loads((folder / "text.json").read_text())
    tokens = {name: entry["tokens"] for name, entry in described["domains"].items()}
    assert tokens["half"]["train"] == pytest.approx(tokens["prose"]["train"] / 2, rel=0.02)
    assert described["domains"]["base64"]["noise"] is True
    before = (folder / "train/prose/prose_text_document.bin").stat().st_mtime_ns
    assert main(["prepare", *prepared, "--corpus", str(corpus)]) == 0
    assert (folder / "train/prose/prose_text_document.bin").stat().st_mtime_ns == before


def test_the_entropy_of_noise_is_a_bound_over_all_tokens(tmp_path, prepared, corpus):
    folder = tmp_path / "work/texts/S"
    described = json.loads((folder / "text.json").read_text())["domains"]

    def entropy(domain: str) -> tuple[float, dict[str, Any]]:
        """Nats in all test documents, and the counts of the dataset."""
        metadata = folder / f"test/{domain}/{domain}_text_document.meta.json"
        facts = json.loads(metadata.read_text())
        return described[domain]["nats_per_token"] * facts["tokens"], facts

    nats, facts = entropy("base64")
    assert nats == pytest.approx(6 * math.log(2) * facts["text_bytes"], rel=1e-12)
    nats, facts = entropy("words")
    words = len(Corpus(corpus, corpus / "tokenizer-8k.json").words())
    assert facts["tokens"] == 401 * facts["documents"]  # an end after 400 words
    assert nats == pytest.approx(400 * facts["documents"] * math.log(words), rel=1e-12)
    assert "nats_per_token" not in described["counting"]


def test_an_arm_that_does_not_exist_yet_is_refused_by_its_key(tmp_path, prepared, capsys):
    later = {"data_sampling_method": "static", "data_sampling_tomorrow": 1}
    arms = {"later": {"settings": later}, "frozen": {"average_of": "later"}}
    suites = {"S": {"text": "S", "seeds": {"later": [1], "frozen": [1]}}}
    written(tmp_path, plan_of(arms=arms, suites=suites))
    assert main(["run", *prepared]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["S/later/1", "S/frozen/1"]
    assert all("data_sampling_tomorrow" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status"], "text.json: the text is not prepared; run the command prepare first"),
        (["prepare", "--corpus", "nowhere"], "nowhere"),
        (["run", "--only", "Z/*"], "--only: no run of"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, expected):
    plan = written(tmp_path, plan_of())
    assert main([*arguments, "--plan", str(plan), "--work", str(tmp_path / "work")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


# results and report


def result_of(run: Run, *, offset: float = 0.0, digest: str = "d") -> dict[str, Any]:
    """A result whose losses are those of uniform plus ``offset``."""
    seed_effect = run.seed / 100

    def domain(loss: float, samples: int, *, noise: bool = False) -> dict[str, Any]:
        last = loss + seed_effect + offset
        return {
            **{"noise": noise, "entropy": 3.5 if noise else None, "samples": samples},
            **{"epochs": 0.5, "weights": [0.5, 0.5, 0.5, 0.5]},
            "validation_loss": [last + 3, last + 2, last + 1, last],
            **{"test_loss": last, "test_bits_per_byte": last / 2},
        }

    return {
        **{"format": 1, "suite": run.suite, "arm": run.arm, "seed": run.seed, "digest": digest},
        **{"settings": {}, "text_digest": "t", "tokens": 1000, "parameters": 10, "seconds": 60.0},
        **{"machine": {"processor": "P", "threads": 1}, "versions": {"torch": "2"}},
        **{"iterations": [0, 10, 20, 30], "stable_until": 24},
        "domains": {
            "prose": domain(1.0, 30),
            "counting": domain(2.0, 30),
            "base64": domain(4.0, 20, noise=True),
        },
    }


def test_measures_leave_noise_out():
    found = measures(result_of(Run("S", "uniform", 0)))
    assert found.loss == pytest.approx(1.5)
    assert found.bits_per_byte == pytest.approx(0.75)
    assert found.perplexity == pytest.approx((math.e + math.e**2) / 2)
    assert found.worst_loss == pytest.approx(2.0)


def test_the_curve_is_compared_before_and_after_the_decay():
    uniform, better = (result_of(Run("S", "a", 0), offset=offset) for offset in (0.0, -0.5))
    assert curve(uniform, perplexity=False) == pytest.approx([4.5, 3.5, 2.5, 1.5])
    # 20 is the last validation before 24; the better arm reaches 2.5 half-way from 10 to 20
    before = iterations_ratio(better, uniform, perplexity=False, at_end=False)
    assert before == pytest.approx(15 / 20)
    assert iterations_ratio(better, uniform, perplexity=False, at_end=True) == pytest.approx(
        25 / 30
    )
    assert iterations_ratio(uniform, better, perplexity=False, at_end=True) is None


def test_the_report_pairs_runs_of_a_seed(plan):
    runs = [Run("S", "uniform", seed) for seed in (1, 2, 3)]
    results = {run: result_of(run) for run in runs}
    for seed, offset in ((1, -0.02), (2, -0.1)):
        results[Run("S", "moving", seed)] = result_of(Run("S", "moving", seed), offset=offset)
    results[Run("S", "frozen", 1)] = result_of(Run("S", "frozen", 1), offset=-0.05)
    text = report(plan, results)
    # bits per byte differ by half of the losses; t with one degree of freedom is 12.706; the four
    # resamples of two pairs have the means -0.1, -0.06 twice, and -0.02
    assert "| moving | bits per byte | -0.0300 | -0.0485 to -0.0115 | -0.2841 to +0.2241 |" in text
    assert "| moving | loss | -0.0600 | -0.0970 to -0.0230 | -0.5682 to +0.4482 | 2 of 2 |" in text
    assert "| moving | loss | +0.0300 | - | - | 0 of 1 |" in text  # against its own average
    assert "| base64 (noise, entropy 3.500) | 4.0200 | -0.0600 | -0.0500 |" in text
    assert "25.0% |" in text  # 20 of 80 samples on noise


def test_variants_of_our_method_are_compared_with_it():
    arms = {"uniform": 0.0, "learning_curve": -0.02, "learning_curve_heldout": -0.05}
    runs = {Run("H", arm, 1): offset for arm, offset in arms.items()}
    results = {run: result_of(run, offset=offset) for run, offset in runs.items()}
    text = report(read_plan(PLAN), results)
    _, _, table = text.partition("Paired differences to learning_curve;")
    rows = [line for line in table.partition("Iterations")[0].splitlines() if "| loss |" in line]
    assert rows == ["| learning_curve_heldout | loss | -0.0300 | - | - | 1 of 1 |"]


def test_runs_of_two_processors_are_a_pair_and_their_repeats_are_shown(plan):
    results = {Run("S", arm, 1): result_of(Run("S", arm, 1)) for arm in ("uniform", "moving")}
    results[Run("S", "moving", 1)]["machine"] = {"processor": "Q", "threads": 1}
    assert len(pairs_of(results, "moving", "uniform")) == 1
    again = result_of(Run("S", "moving", 1), offset=0.002)
    unknown = Run("S", "moving", 7)
    text = report(plan, results, repeats={Run("S", "moving", 1): again, unknown: again})
    assert "; P and Q, 1 thread per run." in text
    assert "| S/moving/1 | Q | P | +0.0010 | +0.0020 |" in text
    assert "S/moving/7" not in text
    assert "two processors" not in report(plan, results)


def test_a_report_reads_repeats_from_their_folder(tmp_path, plan):
    results = tmp_path / "results"
    for folder, offset in ((results, 0.0), (results / "repeats", 0.004)):
        folder.mkdir()
        run = Run("S", "uniform", 1)
        digest = plan.digest(run, "t")
        write_result(result_path(folder, run), result_of(run, offset=offset, digest=digest))
    output = tmp_path / "report.md"
    options = ["--plan", str(tmp_path / "plan.yml"), "--results", str(results), "-o", str(output)]
    assert main(["report", *options, "--work", str(tmp_path / "nothing")]) == 0
    assert "| S/uniform/1 | P | P | +0.0020 | +0.0040 |" in output.read_text()


def answers_by_question(results):
    return {row[1]: row[2:] for row in answers(results)}


def test_questions_are_answered_only_with_enough_runs():
    def results(*offsets, arm="learning_curve", suite="X"):
        pairs = {}
        for seed, offset in enumerate(offsets, 1):
            pairs[Run(suite, "uniform", seed)] = result_of(Run(suite, "uniform", seed))
            pairs[Run(suite, arm, seed)] = result_of(Run(suite, arm, seed), offset=offset)
        return pairs

    asked = "loss: is learning_curve below uniform?"
    assert answers({}) == []
    assert answers_by_question(results(-0.02))[asked][-1] == "one pair"
    assert answers_by_question(results(-0.02, -0.021, -0.022))[asked][-1] == "**yes**"
    assert answers_by_question(results(-0.02, -0.1))[asked][-1] == "not shown"
    assert answers_by_question(results(0.02, 0.021))[asked][-1] == "**no**, it is above"
    # the guarded arm may differ as much as uniform's own seeds, which are all alike here
    drill = results(0.01, 0.02, arm="guarded_smoothed_mean")
    asked = "bits per byte: is guarded_smoothed_mean within 2 standard deviations of the seeds of"
    assert answers_by_question(drill)[f"{asked} uniform?"][-1] == "**no**"
    asked = "bits per byte: is learning_curve within 2 standard errors of uniform?"
    assert answers_by_question(results(-0.01, 0.012, suite="H"))[asked][-1] == "**yes**"
    assert answers_by_question(results(0.01, 0.012, suite="H"))[asked][-1] == "**no**"


def test_a_slower_arm_does_not_reach_the_goal_in_iterations():
    one, other = Run("X", "uniform", 1), Run("X", "learning_curve", 1)
    results = {one: result_of(one), other: result_of(other, offset=9.0)}
    asked = "iterations to uniform's loss before the decay: at most 1 times as many?"
    assert answers_by_question(results)[asked] == ["never", "-", "0 of 1", "one pair"]


def test_each_suite_is_drawn(tmp_path, prepared):
    pytest.importorskip("matplotlib")
    campaign = Campaign(
        read_plan(tmp_path / "plan.yml"), work=tmp_path / "work", results=tmp_path / "results"
    )
    for arm, offset in (("uniform", 0.0), ("moving", -0.1)):
        run = Run("S", arm, 1)
        result = result_of(run, offset=offset, digest=campaign.digest(run))
        write_result(result_path(campaign.results, run), result)
    assert main(["report", *prepared, "--pictures", str(tmp_path / "pictures")]) == 0
    assert (tmp_path / "pictures/S.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_survives_its_file_and_one_of_other_settings_is_left_out(tmp_path, prepared):
    plan = read_plan(tmp_path / "plan.yml")
    campaign = Campaign(plan, work=tmp_path / "work", results=tmp_path / "results")
    one, other = Run("S", "uniform", 1), Run("S", "uniform", 2)
    kept = result_of(one, digest=campaign.digest(one))
    write_result(result_path(campaign.results, one), kept)
    write_result(result_path(campaign.results, other), result_of(other, digest="older"))
    assert read_result(result_path(campaign.results, one)) == kept
    assert (campaign.state(one), campaign.state(other)) == ("done", "to do")
    large = Run("L", "uniform", 1)  # of a suite on request
    write_result(
        result_path(campaign.results, large), result_of(large, digest=campaign.digest(large))
    )
    assert main(["report", *prepared, "-o", str(tmp_path / "report.md")]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "\n1 results of other settings" in text
    assert "## Suite L" in text


def test_a_report_needs_no_corpus_but_one_text(tmp_path, plan, capsys):
    results = tmp_path / "results"
    options = ["--plan", str(tmp_path / "plan.yml"), "--results", str(results)]
    options += ["--work", str(tmp_path / "nothing")]
    for seed, text_digest in ((1, "t"), (2, "another")):
        run = Run("S", "uniform", seed)
        result = result_of(run, digest=plan.digest(run, text_digest))
        write_result(result_path(results, run), {**result, "text_digest": text_digest})
        assert main(["report", *options]) == (0 if seed == 1 else 2)
    assert "results of suite S come from 2 different texts" in capsys.readouterr().err


def test_words_of_a_real_tokenizer_are_one_token_each(corpus):
    file = str(corpus / "tokenizer-8k.json")
    tokenizer = build_tokenizer(SimpleNamespace(tokenizer_type="HFTokenizer", vocab_file=file))
    tokens = [tokenizer.detokenize([number]) for number in range(tokenizer.vocab_size)]
    words = whole_words(tokenizer.tokenize, tokens)
    assert {"again", "it", "says"} <= set(words)
    assert len(tokenizer.tokenize(" says it again")) == 3
