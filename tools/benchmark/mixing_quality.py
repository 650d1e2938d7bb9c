"""Compares mixing methods on real training runs, by a plan that is fixed before.

    python -m tools.benchmark.mixing_quality prepare --corpus FOLDER
    python -m tools.benchmark.mixing_quality run --hours 6
    python -m tools.benchmark.mixing_quality status
    python -m tools.benchmark.mixing_quality report -o docs/results/mixing.md

Each run trains in a process of its own and continues from its last checkpoint if it was killed. A
finished run leaves one small file in the results folder; the report reads only these.
docs/results/mixing_protocol.md says what is compared and why.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from megatron.errors import UserError
from megatron.files import describe_error, write_text_atomic
from tools.benchmark.quality.campaign import Campaign
from tools.benchmark.quality.picture import draw_suite
from tools.benchmark.quality.plan import Plan, PlanError, Run, read_plan
from tools.benchmark.quality.report import report
from tools.benchmark.quality.results import result_path
from tools.benchmark.quality.suites import Corpus, prepare

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "tools/benchmark/quality/plan.yml"
RESULTS = ROOT / "docs/results/mixing"
REPEATS = "repeats"
"""Folder in that of the results: runs that were made a second time, on another processor."""
CORPUS_VARIABLE = "ODM_NEOX_CORPUS"
TOKENIZER = "tokenizer-8k.json"


def get_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    added = {}
    for name, help_text in (
        ("prepare", "make and tokenize the texts of the suites"),
        ("run", "make the runs that are not done, or continue them"),
        ("status", "list the runs and their state"),
        ("report", "write the tables of the finished runs"),
    ):
        added[name] = commands.add_parser(name, help=help_text)
        _add_common(added[name])
    corpus = os.environ.get(CORPUS_VARIABLE)
    added["prepare"].add_argument(
        "--corpus",
        type=Path,
        default=corpus,
        help="folder with train, valid and test, each with DOMAIN.jsonl.zst; default: the variable "
        f"{CORPUS_VARIABLE}",
    )
    added["prepare"].add_argument(
        "--tokenizer", type=Path, help=f"tokenizer.json; default: {TOKENIZER} of the corpus"
    )
    added["run"].add_argument(
        "--hours", type=float, help="after this time the runs save and the command ends"
    )
    added["run"].add_argument("--processes", type=int, default=2, help="runs at a time")
    added["run"].add_argument("--threads", type=int, default=1, help="threads of each run")
    added["report"].add_argument("-o", "--output", type=Path, help="not given: the console")
    added["report"].add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="draws SUITE.png; needs matplotlib"
    )
    args = parser.parse_args(arguments)
    if args.command == "prepare" and not args.corpus:
        parser.error(f"argument --corpus: needed, or the variable {CORPUS_VARIABLE}")
    if args.command == "run" and min(args.processes, args.threads) < 1:
        parser.error("arguments --processes and --threads: must be at least 1")
    return args


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--plan", type=Path, default=PLAN, help="default: %(default)s")
    command.add_argument(
        "--work", type=Path, default=Path("mixing_quality"), help="folder of texts and runs"
    )
    command.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of results; default: %(default)s"
    )
    command.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATTERN",
        help="runs by name, suite/arm/seed, with * for anything; not given: all suites that are "
        "not on request, and for report all suites",
    )


def prepare_texts(plan: Plan, runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Prepares the texts of the runs."""
    corpus = Corpus(args.corpus, args.tokenizer or args.corpus / TOKENIZER)
    for name in dict.fromkeys(plan.suites[run.suite].text for run in runs):
        text = prepare(name, plan.texts[name], corpus=corpus, folder=args.work / "texts" / name)
        print(f"{name}: {len(text.domains)} domains, digest {text.digest[:16]}")


def print_status(campaign: Campaign, runs: Sequence[Run]) -> None:
    """Prints the state of each run, and how many there are of each."""
    states = {run: campaign.state(run) for run in runs}
    for run, state in states.items():
        print(f"{run.name:<40} {state}")
    counts = Counter(state.partition(" (")[0] for state in states.values())
    print(", ".join(f"{number} {state}" for state, number in counts.items()))


def write_report(
    campaign: Campaign, runs: Sequence[Run], *, output: Path | None, pictures: Path | None
) -> None:
    """Writes the tables of the runs that are done, and draws them where ``pictures`` is given."""
    results = {run: result for run in runs if (result := campaign.result(run))}
    if not results:
        raise PlanError(f"{campaign.results}: no result of this plan and text; use run first")
    for suite in dict.fromkeys(run.suite for run in results):
        of_suite = {r["text_digest"] for run, r in results.items() if run.suite == suite}
        if len(of_suite) > 1:
            raise PlanError(
                f"{campaign.results}: results of suite {suite} come from {len(of_suite)} different "
                "texts; prepare the text that counts, then those of the other are left out"
            )
    files = sum(result_path(campaign.results, run).exists() for run in runs)
    again = dataclasses.replace(campaign, results=campaign.results / REPEATS)
    repeats = {run: result for run in runs if (result := again.result(run))}
    text = report(campaign.plan, results, repeats=repeats, left_out=files - len(results))
    if output is None:
        print(text, end="")
    else:
        write_text_atomic(output, text)
    if pictures is not None:
        for suite in dict.fromkeys(run.suite for run in results):
            of_suite = {run: result for run, result in results.items() if run.suite == suite}
            draw_suite(of_suite, pictures / f"{suite}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit code."""
    args = get_args(arguments)
    try:
        plan = read_plan(args.plan)
        # whatever was run is reported
        runs = plan.runs(args.only or (["*"] if args.command == "report" else []))
        if not runs:
            raise PlanError(f"--only: no run of {args.plan} matches {' '.join(args.only)}")
        campaign = Campaign(plan, work=args.work.resolve(), results=args.results)
        if args.command == "prepare":
            prepare_texts(plan, runs, args)
        elif args.command == "run":
            campaign.threads = args.threads
            seconds = None if args.hours is None else args.hours * 3600
            return campaign.run(runs, processes=args.processes, seconds=seconds)
        elif args.command == "status":
            print_status(campaign, runs)
        else:
            write_report(campaign, runs, output=args.output, pictures=args.pictures)
    except (UserError, OSError) as error:
        print(f"mixing_quality: {describe_error(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
