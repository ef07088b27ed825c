"""Checks for the exercises of the closing chapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdsec.config import settings
from kdsec.exercises import ask, compare, exercise, number, off, tensor
from kdsec.report.records import recorded


@exercise
def knows(answer: Any) -> str:
    """``answer(wrong, accepted)``, both (A, N) of bool: harm by an attacker with A attempts an image."""
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(3, 200, generator=generator) < 0.4
    accepted = torch.rand(3, 200, generator=generator) < 0.5
    harm = (wrong & accepted).double()
    slips = [
        (harm.mean(1).max(), "that is the best single attack; this attacker takes another for each image"),
        (harm.mean(), "that is an attacker who draws an attack at random"),
        (wrong.any(0).double().mean(), "what is rejected does no harm: it must be accepted as well"),
        ((wrong.any(0) & accepted.any(0)).double().mean(), "one attempt must be both wrong and accepted"),
        (harm.amin(0).mean(), "that asks every attempt to do harm; one is enough"),
        (harm.sum() / accepted.sum(), "of all images, not of the accepted attempts"),
    ]
    hint = "an image is lost if any attempt on it is both wrong and accepted; then the share of images"
    compare(number(ask(answer, wrong, accepted)), harm.amax(0).mean(), slips, hint)
    return "every other attacker is one of the attempts of this one, and cannot do more harm"


@exercise
def price(answer: Any) -> str:
    """``answer(frame, arm)``: points that a teacher costs its owner, and takes from its best thief."""
    frame, at = recorded("crossing", "quick"), settings("crossing", "quick")
    tested = frame[frame["metric"] == "test accuracy"]
    level = 100 * tested.groupby(["arm", "setting"])["value"].mean()

    def lost(arm: str, setting: str) -> float:
        return level["normal", setting] - level[arm, setting]

    for arm in at.teachers:
        found = ask(answer, frame, arm)
        if not isinstance(found, tuple | list) or len(found) != 2:
            off("return two numbers, what the teacher costs and what it takes")
        cost, taken = lost(arm, ""), lost(arm, "thief=best")
        trusting = lost(arm, "thief=soft labels")
        slips = [
            ((taken, cost), "first what it costs, then what it takes"),
            ((cost / 100, taken / 100), "in points, please: 100 times as much"),
            ((-cost, -taken), "what is lost against the normal teacher counts positive"),
            ((cost, trusting), "that is the thief who trusts soft labels; the best is at thief=best"),
        ]
        hint = (
            f"{arm}: the normal teacher's mean test accuracy minus this one's; then of students, thief=best"
        )
        compare([number(each) for each in found], (cost, taken), slips, hint, 1e-3)
    return "what counts is what the best thief loses for each point that the owner pays"


@exercise
def trigger(answer: Any) -> str:
    """``answer(images, side, generator)``: a copy with one random square of noise in each image."""
    images, side = torch.full((64, 1, 8, 8), 2.0), 3  # no noise in [0, 1] is like it
    before = images.clone()
    found = tensor(ask(answer, images, side, torch.Generator().manual_seed(1)), images.shape)
    if not torch.equal(images, before):
        off("the originals have changed: the purifier should give them back, so work on a copy")
    changed = found != 2
    if not changed.any():
        off("nothing has changed")
    if found[changed].min() < 0 or found[changed].max() > 1:
        off("the noise leaves [0, 1]")
    found_at = [_corner(each, side) for each in changed[:, 0]]
    corners = {corner for corner in found_at if corner is not None}
    if None in found_at:
        off(f"every image should have one full square of {side} by {side} pixels, inside the picture")
    if len(corners) < 9:
        off("the squares are in too few places: the owner does not know where the trigger will be")
    if {row for row, _ in corners} != set(range(8 - side + 1)):
        off("some rows never begin a square: the first can be 0, the last is where it just fits")
    if found[changed].unique().numel() < 64 * side:
        off("one colour is easily learnt: give each pixel noise of its own")
    return "it learns to paint over what does not fit, wherever that stands, and pays in pictures that do fit"


def _corner(changed: Tensor, side: int) -> tuple[int, int] | None:
    """Where the square ``(H, W)`` of bool begins; None if it is not one full square of that side."""
    places = changed.nonzero()
    if len(places) != side * side or (places.amax(0) - places.amin(0) != side - 1).any():
        return None
    row, column = places.amin(0).tolist()
    return row, column
