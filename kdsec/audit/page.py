"""The report of an audit: one HTML page that loads nothing, and one JSON file."""

from __future__ import annotations

import html
import json
import math
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from kdsec import __version__
from kdsec.audit.measure import Audit
from kdsec.audit.serving import AS_IS, BY_HAND, LABELS
from kdsec.audit.verdict import CHEAP, ENOUGH, FAR, MARGIN, UNCHANGED, Point, difference, points, verdict
from kdsec.errors import atomic_write

DASHES = {AS_IS: "", LABELS: "6 3", BY_HAND: "2 3"}  # in the page's ink; the others have colours
# --c0 to --c5 in page.css, after Okabe and Ito; these where a chart is shown on another page.
SHADES = ("#d1600a", "#2a8fd0", "#14a37f", "#b76aa0", "#a8820f", "#7a7adf")
INK, LINE, PAPER = "var(--ink, currentColor)", "var(--line, #8885)", "var(--paper, none)"
NOT_TESTED = (
    "a thief whose images are unlike the model's own; each of their queries tells less",
    "a thief who chooses queries by the answers so far, or makes images up (data-free attacks)",
    "larger copies, longer training, or a copy that starts from a network trained on public data",
    "more queries than the largest budget",
    "a learned reversal of the defence (shadow models), and what weights or timing give away",
    "anything but copying: extraction of training images, adversarial examples, backdoors",
)
RULE = (
    "<p>At the largest budget that was finished. A difference counts above a margin: "
    f"{100 * MARGIN:.0f} points, or two standard errors over test images and seeds if they are more.</p>"
    "<ol><li>Probabilities give a copy no more than labels alone: serve them.</li><li>Else the cheapest "
    f"defence that takes back {ENOUGH:.0%} of what they give, changes at most {UNCHANGED:.1%} of the "
    f"decisions and costs at most {CHEAP:g} nats or {CHEAP:.0%} of log loss (without labels: moves "
    f"probabilities by at most {FAR:g}): serve that.</li><li>Else stop serving probabilities wherever "
    "users can do without.</li></ol>"
)


def write(audit: Audit, folder: pathlib.Path) -> None:
    """Write ``audit.html`` and ``audit.json``, each whole or not at all."""
    save(folder / "audit.json", json.dumps(facts(audit), indent=1) + "\n")
    save(folder / "audit.html", page(audit))


def save(path: pathlib.Path, text: str) -> None:
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def facts(audit: Audit) -> dict[str, Any]:
    """Everything on the page, and each copy, as plain values."""
    return {
        "kdsec": __version__,
        "torch": torch.__version__,
        "written": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "model": audit.name,
        "images": {"name": audit.thief.name, "thief": len(audit.thief), "test": len(audit.test)},
        "plan": {**vars(audit.plan), "device": str(audit.plan.device)},
        "verdict": verdict(audit)._asdict(),
        "points": [point._asdict() for point in points(audit)],
        "costs": audit.costs,
        "copies": [{name: value for name, value in row.items() if name != "agrees"} for row in audit.rows],
        "notes": audit.notes,
        "not begun": [block._asdict() for block in audit.left],
        "not tested": list(NOT_TESTED),
        "training seconds": round(audit.seconds, 1),
    }


def page(audit: Audit) -> str:
    """The report as one HTML document."""
    said, found = verdict(audit), points(audit)
    state = "The audit is complete."
    if audit.left:
        more = "the same command" if audit.plan.minutes is None else "the same command with more minutes"
        count = f"{len(audit.left)} of {len(audit.left + audit.done)}"
        state = f"Not begun yet: {count} blocks; {more} goes on from here."
    sentences = "".join(f"<p>{text(each)}</p>" for each in said.sentences)
    sizes = f"{len(audit.thief):,} images of a thief, {len(audit.test):,} to measure with"
    titles = {"agreement": "Agreement of the best copy with the model, by queries"}
    if audit.labels is not None:
        own = f"(the model itself: {audit.costs[AS_IS]['accuracy']:.1%})"
        titles["accuracy"] = f"Accuracy of the best copy, by queries {own}"
    parts = [
        f'<p class="quiet">{sizes}, {audit.thief.num_classes} classes. {state}</p>',
        f'<div class="card"><b>Advice: {text(said.advice)}</b>{sentences}</div>',
        *(f"<p><b>Note.</b> {text(note)}</p>" for note in audit.notes),
        "<h2>What a copy gets for how many queries</h2>",
        f'<div class="charts">{"".join(chart(found, what, title) for what, title in titles.items())}</div>',
        _leaks(found),
        "<h2>What each defence costs: the thief, and honest users</h2>",
        _defences(audit),
        f"<h2>By which rule</h2>{RULE}<h2>What was not tested</h2>{items(NOT_TESTED)}",
        f"<h2>How it was measured</h2>{items(_method(audit))}",
    ]
    return document(f"What serving {audit.name} gives away", parts)


def document(title: str, parts: Iterable[str]) -> str:
    """A self-contained page: style inside, no scripts, nothing from elsewhere."""
    style = pathlib.Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f'<link rel="icon" href="data:,"><title>{text(title)}</title>\n<style>\n{style}</style>'
    body = f"<main><h1>{text(title)}</h1>\n" + "\n".join(parts) + "\n</main>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def text(value: object) -> str:
    return html.escape(str(value))


def items(values: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(value)}</li>" for value in values) + "</ul>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways by itself on a phone."""
    top = "".join(f'<th scope="col">{text(each)}</th>' for each in head)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    whole = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{whole}</div>'


def chart(found: Sequence[Point], what: str, title: str) -> str:
    """A line for each way of serving over the logarithm of the queries: a figure with an SVG inside.

    Args:
        found: what was measured.
        what: ``agreement`` or ``accuracy``.
        title: the caption.
    """
    spreads = [point.spread or 0.0 if what == "agreement" else 0.0 for point in found]
    values = [getattr(p, what) + sign * s for p, s in zip(found, spreads, strict=True) for sign in (-1, 1)]
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10
    high = max(high, low + 0.1)
    budgets = sorted({point.budget for point in found})
    names = list(dict.fromkeys(point.served for point in found))

    def across(budget: int, name: str = "") -> float:
        if len(budgets) > 1:
            return round(58 + 280 * math.log(budget / budgets[0]) / math.log(budgets[-1] / budgets[0]), 1)
        share = (names.index(name) + 0.5) / len(names) if name else 0.5  # one budget: points side by side
        return round(58 + 280 * share, 1)

    def up(value: float) -> float:
        return round(14 + 190 * (high - value) / (high - low), 1)

    marks = []
    for level in [low + step / 10 for step in range(round(10 * (high - low)) + 1)]:
        marks.append(f'<line x1="44" x2="352" y1="{up(level)}" y2="{up(level)}" stroke="{LINE}"/>')
        marks.append(f'<text x="38" y="{up(level) + 4}" text-anchor="end">{100 * level:.0f}%</text>')
    marks += [f'<text x="{across(b)}" y="224" text-anchor="middle">{b:,}</text>' for b in budgets]
    for name in names:
        spots = [(across(p.budget, name), getattr(p, what), p) for p in found if p.served == name]
        path = " ".join(f"{x},{up(y)}" for x, y, _ in spots)
        marks.append(f'<polyline points="{path}" fill="none" stroke-width="2" {_stroke(name, names)}/>')
        for x, y, point in spots:
            marks.append(f'<circle cx="{x}" cy="{up(y)}" r="3" fill="{PAPER}" {_colour(name, names)}/>')
            if what == "agreement" and point.spread:
                ends = f'y1="{up(y - point.spread)}" y2="{up(y + point.spread)}"'
                marks.append(f'<line x1="{x}" x2="{x}" {ends} {_stroke(name, names)}/>')
    final = "; ".join(f"{p.served} {getattr(p, what):.0%}" for p in found if p.budget == budgets[-1])
    alt = text(f"{title}. At {budgets[-1]:,} queries: {final}.")
    stripe = '<svg width="30" height="10" aria-hidden="true"><line x2="30" y1="5" y2="5" stroke-width="3" '
    key = "".join(f"<li>{stripe}{_stroke(name, names)}/></svg>{text(name)}</li>" for name in names)
    drawn = f'{"".join(marks)}<text x="200" y="243" text-anchor="middle">queries</text>'
    looks = f'font-size="11" fill="{INK}" style="max-width: 32rem"'
    picture = f'<svg viewBox="0 0 360 248" role="img" aria-label="{alt}" {looks}>'
    order = " Points in the order of the key." if len(budgets) == 1 else ""
    caption = f'<ul class="key">{key}</ul><figcaption>{text(title)}.{order}</figcaption>'
    return f"<figure>{picture}{drawn}</svg>{caption}</figure>"


def _stroke(name: str, names: Sequence[str]) -> str:
    return f'{_colour(name, names)} stroke-dasharray="{DASHES.get(name) or "none"}"'


def _colour(name: str, names: Sequence[str]) -> str:
    if name in DASHES:
        return f'stroke="{INK}"'
    place = [each for each in names if each not in DASHES].index(name) % len(SHADES)
    return f'stroke="var(--c{place}, {SHADES[place]})"'


def _leaks(found: Sequence[Point]) -> str:
    """The numbers of the curves."""
    budgets, rows = sorted({point.budget for point in found}), []
    for name in dict.fromkeys(point.served for point in found):
        mine = [point for point in found if point.served == name]
        cells = [
            f"{100 * p.agreement:.1f}" + ("" if p.spread is None else f" ± {100 * p.spread:.1f}")
            for p in mine
        ]
        rows.append([name, *cells, ", ".join(dict.fromkeys(mine[-1].attacks))])
    note = (
        "Agreement in %, mean ± standard deviation over seeds; attack: as the thief chose at the last budget."
    )
    head = ["served", *(f"{budget:,} queries" for budget in budgets), "best attack"]
    return table(head, rows) + f'<p class="quiet">{note}</p>'


def _defences(audit: Audit) -> str:
    budget, rows = verdict(audit).budget, []
    for name, costs in audit.costs.items():
        taken, margin = difference(audit, AS_IS, name, budget)
        thief = f"{100 * taken:.1f}" if abs(taken) > margin else "–" if name == AS_IS else "none"
        shares = ("accuracy", "decisions changed", "calibration error")
        cells = ["–" if costs[key] is None else f"{costs[key]:.1%}" for key in shares]
        cells += ["–" if costs[key] is None else f"{costs[key]:.3f}" for key in ("log loss", "distance")]
        rows.append([name, thief, *cells])
    head = ["served", "thief loses (points)", "accuracy", "decisions changed", "calibration error"]
    note = (
        f"What the thief loses: agreement at {budget:,} queries, below that with probabilities; none: within "
        "the margin. Calibration error: how far the largest probability is from how often it is right, "
        "in 15 bins. Log loss in nats, smaller is better: a rounded zero is read as half a unit of "
        "the last place, and hidden classes share the rest. Moved: mean L1 distance from the honest answers."
    )
    return table([*head, "log loss", "moved (0 to 2)"], rows) + f'<p class="quiet">{note}</p>'


def _method(audit: Audit) -> list[str]:
    attacks = sorted({row["attack"] for row in audit.rows} - {BY_HAND})
    seeds = sorted({row["seed"] for row in audit.rows})
    once = "One seed shows no spread: take small differences for none." if len(seeds) == 1 else ""
    flips = " and mirroring" if audit.plan.flip else ""
    return [
        f"Attacks: {', '.join(attacks)}. For each way of serving the thief takes the one that agrees best on "
        "a tenth of their own images, and so chooses the temperature; test images choose nothing.",
        "Each image is asked once and unchanged. A copy is trained from stored answers, with random crops"
        f"{flips}. A budget counts the thief's validation images.",
        f"Seeds: {', '.join(map(str, seeds))}; each draws images, first weights and order. {once}",
        f"Training took {audit.seconds / 60:.1f} minutes on {audit.plan.device}; kdsec {__version__}, "
        f"PyTorch {torch.__version__}. Nothing was sent anywhere.",
    ]
