"""What an audit concludes: the best copy of each way of serving, and a recommendation by a stated rule."""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

import torch

from kdsec.audit.measure import Audit
from kdsec.audit.serving import AS_IS, BY_HAND, LABELS

MARGIN = 0.02  # of agreement; differences up to it are none, whatever their standard error
ENOUGH = 0.5  # share of what probabilities give away that a defence must take back
CHEAP = 0.1  # log loss may rise by this share of the model's own, or by as many nats
UNCHANGED = 0.005  # share of decisions that a defence may change
CLOSE = 0.5  # agreement below which a copy is said to be far from the model
FAR = 0.3  # where there are no labels: mean L1 distance from the honest probabilities

SERVE, LIMIT, STOP = "serve probabilities", "serve {} instead", "stop serving probabilities"


class Point(NamedTuple):
    """The best copies of one way of serving at one budget; means over seeds."""

    served: str
    budget: int
    agreement: float  # share of test images on which the copy decides as the model
    accuracy: float | None
    spread: float | None  # standard deviation of the agreement; None for one seed
    attacks: list[str]  # what was chosen on the thief's validation images, by seed
    tried: int  # attacks to choose from


class Verdict(NamedTuple):
    """What to do, and the numbers behind it."""

    advice: str  # SERVE, STOP, or LIMIT with the name of what is served
    serve: str
    sentences: list[str]
    budget: int
    gain: float  # agreement that probabilities give a copy beyond decisions
    margin: float  # what the gain is compared with


def best(audit: Audit, served: str, budget: int) -> list[dict[str, Any]]:
    """For each seed the row that the thief would choose, by validation images alone."""
    chosen: dict[int, dict[str, Any]] = {}
    for row in audit.rows:  # of equals the first
        if (row["served"], row["budget"]) == (served, budget):
            held = chosen.setdefault(row["seed"], row)
            if row["validation"] > held["validation"]:
                chosen[row["seed"]] = row
    return list(chosen.values())


def points(audit: Audit) -> list[Point]:
    """All that was measured, by way of serving and budget."""
    tried: dict[tuple[str, int], set[str]] = {}
    for row in audit.rows:
        tried.setdefault((row["served"], row["budget"]), set()).add(row["attack"])
    found = []
    order = [BY_HAND, *audit.costs]
    for served, budget in sorted(tried, key=lambda each: (order.index(each[0]), each[1])):
        rows = best(audit, served, budget)
        values = [row["agreement"] for row in rows]
        right = [row["accuracy"] for row in rows if row["accuracy"] is not None]
        accuracy = statistics.mean(right) if right else None
        spread = statistics.stdev(values) if len(values) > 1 else None
        names = [row["attack"] for row in rows]
        many = len(tried[served, budget])
        found.append(Point(served, budget, statistics.mean(values), accuracy, spread, names, many))
    return found


def difference(audit: Audit, first: str, second: str, budget: int) -> tuple[float, float]:
    """Agreement of the best copies of ``first`` above ``second``, and what it must exceed to count.

    The margin is ``MARGIN``, or two standard errors if they are more: over test images, paired, and over
    seeds where there are several.
    """
    pairs = zip(best(audit, first, budget), best(audit, second, budget), strict=True)
    gaps = torch.stack([a["agrees"].float() - b["agrees"].float() for a, b in pairs])
    by_seed = gaps.mean(1).tolist()
    errors = [gaps.mean(0).std().item() / math.sqrt(gaps.shape[1])]
    if len(by_seed) > 1:
        errors.append(statistics.stdev(by_seed) / math.sqrt(len(by_seed)))
    return statistics.mean(by_seed), max(MARGIN, 2 * math.hypot(*errors))


def verdict(audit: Audit) -> Verdict:
    """The recommendation, at the largest budget that all ways of serving have met.

    1. Probabilities give a copy no more than decisions alone, within the margin: serve them.
    2. Else the cheapest defence that takes back ``ENOUGH`` of what they give (and more than the margin),
       changes at most ``UNCHANGED`` of the decisions, and costs at most ``CHEAP`` of the log loss (without
       labels: moves the probabilities by at most ``FAR``): serve that.
    3. Else stop serving probabilities, wherever users can do without.
    """
    budget = max(row["budget"] for row in audit.rows)
    gain, margin = difference(audit, AS_IS, LABELS, budget)
    reached = {point.served: point for point in points(audit) if point.budget == budget}
    at = {served: point.agreement for served, point in reached.items()}
    said = (
        f"After {budget:,} queries the best copy decides like the model on {at[AS_IS]:.1%} of the test "
        f"images with probabilities, on {at[LABELS]:.1%} with labels only"
    )
    more = f"{said}: {100 * gain:.1f} points more, beyond the margin of {100 * margin:.1f}."
    last = _by_hand(audit, budget, reached)
    if at[AS_IS] < CLOSE:
        last.append("Neither copy is close to the model yet: try larger budgets before you decide.")
    if gain <= margin:
        none = f"{said}: no gain beyond the margin of {100 * margin:.1f} points."
        why = "Probabilities give away no more than decisions. Hiding them would cost users, not thieves."
        return Verdict(SERVE, AS_IS, [none, why, *last], budget, gain, margin)
    for name in sorted(_cheap(audit), key=lambda name: _price(audit, name)):
        taken, needed = difference(audit, AS_IS, name, budget)
        if taken > max(needed, ENOUGH * gain):
            unit = "off by {:.2f} (L1)" if audit.labels is None else "worse by {:.3f} nats of log loss"
            users = f"users get probabilities that are {unit.format(_price(audit, name))}"
            words = f"Behind {name} the best copy loses {100 * taken:.1f} points, and {users}."
            return Verdict(LIMIT.format(name), name, [more, words, *last], budget, gain, margin)
    words = (
        f"No defence that was tried takes back {ENOUGH:.0%} of it at an acceptable price. Serve labels only "
        "wherever users can do without probabilities; for the others, allow fewer queries."
    )
    return Verdict(STOP, LABELS, [more, words, *last], budget, gain, margin)


def _by_hand(audit: Audit, budget: int, reached: dict[str, Point]) -> list[str]:
    """Whether decisions are worth more than a thief's own work, for a copy and for accuracy."""
    if audit.labels is None:
        return []
    gap, margin = difference(audit, LABELS, BY_HAND, budget)
    if gap > margin:
        worth = f"Labels served are worth {100 * gap:.1f} points more than as many images labelled by hand"
        said = [f"{worth}: also the decisions give something away."]
    else:
        said = [
            "A thief who labels as many images by hand gets as good a copy as from labels served: no change "
            "of the answers protects more than that."
        ]
    own, copy = reached[BY_HAND].accuracy or 0.0, reached[AS_IS].accuracy or 0.0
    error = math.sqrt((own * (1 - own) + copy * (1 - copy)) / len(audit.test))
    if own - copy > max(MARGIN, 2 * error):
        said.append(
            "For accuracy, stealing gains nothing: a network trained on as many images labelled by hand is "
            f"right on {own:.1%} of the test images, the best copy with probabilities on {copy:.1%}."
        )
    return said


def _cheap(audit: Audit) -> list[str]:
    """Defences that honest users can live with, by what is stated above."""
    allowed = FAR if audit.labels is None else max(CHEAP, CHEAP * (audit.costs[AS_IS]["log loss"] or 0))
    names = [each.name for each in audit.servings if each.name not in (AS_IS, LABELS)]
    unchanged = [name for name in names if (audit.costs[name]["decisions changed"] or 0) <= UNCHANGED]
    return [name for name in unchanged if _price(audit, name) <= allowed]


def _price(audit: Audit, name: str) -> float:
    """Rise in log loss in nats, or the distance of the probabilities where there are no labels."""
    loss, own = audit.costs[name]["log loss"], audit.costs[AS_IS]["log loss"]
    return audit.costs[name]["distance"] or 0.0 if loss is None or own is None else loss - own
