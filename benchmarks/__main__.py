"""``python -m benchmarks [--only NAME ...] [--format table|json] [--rounds N]``.

Without ``--only`` everything but ``schedules`` and ``seconds_to_accuracy``, which train for many minutes and
need CIFAR.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from kdsec.errors import KdsecError, check_choice
from kdsec.report.text import text_table

ROUNDS = {
    "training_step": 5,
    "kd_step": 5,
    "kd_students": 5,
    "adversarial_set": 5,
    "pgd": 5,
    "adversarial_step": 3,
    "datafree_step": 3,
    "mimicry": 3,
    "growth": 3,
    "together": 3,
    "import": 7,
    "quick_book": 3,
    "schedules": 3,
    "seconds_to_accuracy": 3,
}
ASKED_FOR = ("schedules", "seconds_to_accuracy")  # and never run otherwise
# What is promised; a ratio is "times faster", but less is better for import, adversarial_set and growth.
GOALS = {
    "training_step": "",
    "kd_step": ">= 3",
    "kd_students": "",
    "adversarial_set": "<= 1.1",
    "pgd": ">= 1.3",
    "adversarial_step": "",
    "datafree_step": "",
    "mimicry": ">= 10",
    "growth": "<= 1.1",
    "together": "",
    "import": "< 1.5",
    "quick_book": "> 1",
    "schedules": "",
    "seconds_to_accuracy": "93 % in 600 s",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise KdsecError(f"{message}; `python -m benchmarks --help` shows what is allowed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status, 2 for a mistake in what was asked for."""
    try:
        options = _parse(arguments)
        results = []
        for name in options.only or [each for each in ROUNDS if each not in ASKED_FOR]:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            results.append({"name": name, **_measure(name, options)})
        _show(results, options.format)
    except KdsecError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m benchmarks", description="Speed as ratios, measured in one run.")
    parser.add_argument("--only", metavar="NAME", nargs="+", action="extend", help=", ".join(ROUNDS))
    parser.add_argument("--format", metavar="FORMAT", default="table", help="table or json")
    parser.add_argument("--rounds", metavar="N", type=int, help="turns that the median is taken over")
    parser.add_argument(
        "--steps", metavar="N", type=int, default=20, help=argparse.SUPPRESS
    )  # for the tests,
    parser.add_argument("--batch", metavar="N", type=int, default=128, help=argparse.SUPPRESS)  # to be quick
    parser.add_argument("--net", metavar="NAME", default="cnn", help="of schedules; the papers' is resnet18")
    parser.add_argument("--images", metavar="N", type=int, default=10_000, help="of schedules")
    parser.add_argument("--dataset", metavar="NAME", default="cifar10", help="of schedules")
    options = parser.parse_args(arguments)
    for name in options.only or ():
        check_choice("benchmark", name, ROUNDS)
    check_choice("format", options.format, ("table", "json"))
    if options.rounds is not None and options.rounds < 1:
        raise KdsecError(f"--rounds {options.rounds} must be 1 or more")
    return options


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    # As `kdsec run` sets it, and before torch starts its threads: idle ones sleep instead of fighting for the
    # cores with DataLoader's workers. It is the baseline that gains.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ["KDSEC_PROGRESS"] = "off"
    from benchmarks import accuracy, attacks, growth, processes, schedules, steps, together
    from kdsec import config

    rounds = options.rounds or ROUNDS[name]
    step = functools.partial(steps.measure, rounds=rounds, steps=options.steps, batch=options.batch)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "training_step": lambda: step(distil=False),
        "kd_step": lambda: step(distil=True),
        "kd_students": lambda: steps.measure_students(
            rounds=rounds, steps=options.steps, batch=options.batch
        ),
        "adversarial_set": lambda: attacks.measure_set(rounds=rounds, steps=options.steps),
        "pgd": lambda: attacks.measure_pgd(rounds=rounds, steps=min(10, options.steps)),
        "adversarial_step": lambda: attacks.measure_adversarial(
            rounds=rounds, steps=options.steps, batch=options.batch
        ),
        "datafree_step": lambda: attacks.measure_datafree(
            rounds=rounds, steps=options.steps, batch=options.batch
        ),
        "mimicry": lambda: attacks.measure_mimicry(rounds=rounds, steps=options.steps),
        "growth": lambda: growth.measure(rounds=rounds, steps=options.steps),
        "together": lambda: together.measure(rounds=rounds, steps=options.steps),
        "import": lambda: processes.measure_import(rounds),
        "quick_book": lambda: processes.measure_quick_book(rounds),
        "schedules": lambda: schedules.measure(
            config.settings("sparse-teacher", "paper", {"dataset": options.dataset}),
            rounds=rounds,
            net=options.net,
            images=options.images,
        ),
        "seconds_to_accuracy": lambda: accuracy.measure(rounds=rounds),
    }
    return measures[name]()


def _show(results: list[dict[str, Any]], form: str) -> None:
    from kdsec.report.provenance import machine, versions

    if form == "json":
        about = {"machine": machine("cpu"), "versions": versions(), "results": results}
        print(json.dumps(about, indent=1))
        return
    rows = [
        {"name": each["name"], "ratio": f"{each['ratio']:.2f}", "goal": GOALS[each["name"]], "of": _of(each)}
        for each in results
    ]
    print(text_table(rows))


def _of(result: dict[str, Any]) -> str:
    """What the ratio is of, in one line."""
    match result:
        case {"kdsec_images_per_second": ours, "textbook_images_per_second": theirs}:
            where = f"{result['precision']}, baseline with {result['textbook_workers']} workers"
            used = f"{result['utilisation']:.0%} of a matrix product's FLOP/s"
            return f"{ours:.0f} to {theirs:.0f} images/s ({where}; {used})"
        case {"first_images_per_second": first, "later_images_per_second": later, "students": count}:
            theirs = result["textbook_images_per_second"]
            who = f"{count} students {result['net']} of one {result['teacher']}"
            return f"{first:.0f}, from the second student on {later:.0f}, to {theirs:.0f} images/s ({who})"
        case {"kdsec_seconds": ours, "torch_seconds": theirs}:
            return f"{ours:.2f} s to {theirs:.2f} s for torch alone"
        case {"kdsec_per_second": ours, "baseline_per_second": theirs}:
            return f"{ours:.3g} to {theirs:.3g} {result['unit']}/s ({result['baseline']})"
        case {"over_one_by_one": found, "students": count}:
            gains = (
                f"{net} {gain['processes']:.2f} and {gain['stacked']:.2f}" for net, gain in found.items()
            )
            return f"times faster in processes and stacked, {count} students: {'; '.join(gains)}"
        case {"worst": worst, "times": times}:
            return f"seconds of {times} times as many {worst} to {times} times the seconds, the worst of four"
        case {"full_accuracy": full, "fast_accuracy": fast, "difference": (mean, low, high)}:
            means = f"{100 * statistics.mean(full):.1f} % to {100 * statistics.mean(fast):.1f} %"
            span = "" if low is None else f", {100 * low:+.1f} to {100 * high:+.1f}"  # one seed has none
            what = f"{result['net']}, {result['images']} images of {result['dataset']}, seeds: {len(full)}"
            gap = f"{100 * mean:+.1f} points{span}"
            return f"accuracy of the papers' schedule {means} of the short one ({gap}; {what})"
        case {"test_accuracy": reached, "seconds_each": ours, "textbook_seconds": theirs}:
            mean, what = f"{100 * statistics.mean(reached):.1f} %", f"{result['net']}, seeds: {len(reached)}"
            return f"{mean} in {statistics.median(ours):.0f} s ({what}) to {theirs:.0f} s of ResNet-18"
        case {"attack_seconds": ours, "bare_seconds": theirs}:
            return f"{ours:.2f} s to {theirs:.2f} s for the passes alone"
        case _:
            allowed, taken = result["allowed_seconds"], result["seconds"]
            return f"{allowed:.0f} s allowed to {taken:.1f} s taken by the slowest chapter"


if __name__ == "__main__":
    sys.exit(main())
