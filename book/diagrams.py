"""The book's diagrams, all in one language: the owner's things blue, the attacker's orange, the rest grey.

``diagrams/NAME.txt`` is a drawing, a part a line (``Drawing.add`` lists them); ``python book/diagrams.py``
writes it as ``NAME.svg``, for notebooks and README. The build puts the drawing into its pages, where it
follows the theme. A drawing is 360 wide and no text is smaller than 12, so that a phone shows it. The matrix
of chapter 7 is drawn from records.
"""

from __future__ import annotations

import html
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from kdsec import config
from kdsec.errors import KdsecError, atomic_write
from kdsec.report import panels, records, tables, verdicts
from kdsec.report.claims import Claim, Quantity, papers

FOLDER = pathlib.Path(__file__).resolve().parent / "diagrams"
SIZE = 12  # of text, unless given
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
COLOURS = {  # light, dark
    "ink": ("#1f2a37", "#e6e9ee"),
    "quiet": ("#566171", "#aab3bf"),
    "paper": ("#fff", "#14181e"),
    "own": ("#2f6fab", "#7db4e6"),
    "own-in": ("#e6f0fa", "#182b3d"),
    "attack": ("#b4540a", "#f0a45d"),
    "attack-in": ("#fdefe0", "#3a2715"),
    "plain": ("#8a94a3", "#79838f"),
    "plain-in": ("#f2f4f7", "#262c35"),
}
LIGHT, DARK = (
    "svg.dg{" + "".join(f"--{name}:{both[mode]};" for name, both in COLOURS.items()) + "}" for mode in (0, 1)
)
STYLE = (
    f'{LIGHT}@media(prefers-color-scheme:dark){{{DARK}}}html[data-theme="light"] {LIGHT}'
    f'html[data-theme="dark"] {DARK}.dg text{{font-family:{FONT};fill:var(--ink)}}'
    ".dg .t-quiet{fill:var(--quiet)}.dg .t-own{fill:var(--own)}.dg .t-attack{fill:var(--attack)}"
) + "".join(
    f".dg .{kind}{{fill:var(--{kind}-in);stroke:var(--{kind});stroke-width:1.5}}"
    f".dg .f-{kind}{{fill:var(--{kind})}}.dg .l-{kind}{{fill:none;stroke:var(--{kind});stroke-width:2}}"
    for kind in ("own", "attack", "plain")
)
IMAGE = re.compile(
    r"^!\[(?P<alt>[^\]]+)\]\((?:[./\w]*/)?diagrams/(?P<name>[\w-]+)\.svg\)"
    r"(?:\n+\*(?P<caption>[^*\n]+)\*(?=\n|\Z))?",
    re.MULTILINE,
)


class Drawing:
    """A drawing, to which parts are added."""

    def __init__(self, width: float = 360, height: float = 0) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []

    def add(self, line: str) -> None:
        r"""Add the part that a line of text names; ``#`` begins a comment.

        ``size W H``; ``box KIND X Y W H : text``; ``text [KIND] [start|end] [bold] [SIZE] X Y : text``, Y the
        middle of the first line, ``\n`` its end; ``arrow KIND [dashed] X,Y X,Y ...``; ``border Y : text``, a
        dashed line across; ``bars KIND X Y P P ... : text``, probabilities, the right class first;
        ``use NAME X Y``, another drawing. KIND is own, attack, plain, or quiet for text.

        Raises:
            KdsecError: no part is of this form.
        """
        if not line.strip() or line.startswith("#"):
            return
        first, _, words = line.partition(" : ")
        name, *rest = first.split()
        numbers = [
            [float(each) for each in part.split(",")] for part in rest if re.fullmatch(r"[-\d.,]+", part)
        ]
        flags = [part for part in rest if not re.fullmatch(r"[-\d.,]+", part)]
        try:
            if name == "size":
                self.width, self.height = (each[0] for each in numbers)
            elif name == "arrow":
                self.arrow(flags[0], [(x, y) for x, y in numbers], "dashed" in flags)
            else:
                getattr(self, name)(flags, *(each[0] for each in numbers), words.replace(r"\n", "\n"))
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            raise KdsecError(f"diagrams, {line!r} is no part of a drawing: {error}") from None

    def text(self, flags: Sequence[str], *numbers_and_words: Any) -> None:
        *size, x, y, words = numbers_and_words
        height = size[0] if size else SIZE
        anchor = next((each for each in flags if each in ("start", "end")), "middle")
        look = "".join(f' class="t-{each}"' for each in flags if each in ("own", "attack", "quiet"))
        look += ' font-weight="600"' * ("bold" in flags)
        for row, line in enumerate(words.split("\n")):
            place = f'x="{x:g}" y="{y + row * (height + 3) + 0.36 * height:.1f}"'
            size_of = f'font-size="{height:g}" text-anchor="{anchor}"{look}'
            self.parts.append(f"<text {place} {size_of}>{html.escape(line)}</text>")

    def box(self, flags: Sequence[str], x: float, y: float, w: float, h: float, words: str = "") -> None:
        place = f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"'
        self.parts.append(f'<rect class="{flags[0]}" {place} rx="{min(7, w / 6):g}"/>')
        if words:
            self.text([], 13, x + w / 2, y + h / 2 - 8 * words.count("\n"), words)

    def arrow(self, kind: str, points: Sequence[tuple[float, float]], dashed: bool = False) -> None:
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        path = " ".join(f"{x:g} {y:g}" for x, y in [*points[:-1], (x1 - 7 * dx, y1 - 7 * dy)])
        dash = ' stroke-dasharray="5 4"' * dashed
        self.parts.append(f'<path class="l-{kind}" d="M{path}"{dash}/>')
        sides = [(x1 - 9 * dx + side * dy, y1 - 9 * dy - side * dx) for side in (5, -5)]
        head = " ".join(f"{x:.1f} {y:.1f}" for x, y in [(x1, y1), *sides])
        self.parts.append(f'<path class="f-{kind}" d="M{head}z"/>')

    def border(self, flags: Sequence[str], y: float, words: str) -> None:
        self.parts.append(f'<path class="l-plain" d="M0 {y:g}H{self.width:g}" stroke-dasharray="6 5"/>')
        self.text(["quiet", "start"], 4, y - 12, words)

    def bars(self, flags: Sequence[str], x: float, y: float, *values_and_words: Any) -> None:
        *values, words = values_and_words
        for place, value in enumerate(values):
            tall, kind = max(60 * value, 1.5), flags[0] if place else "own"
            at = f'x="{x + 17 * place:g}" y="{y + 60 - tall:.1f}"'
            self.parts.append(f'<rect class="f-{kind}" {at} width="13" height="{tall:.1f}"/>')
        self.parts.append(f'<path class="l-plain" d="M{x - 3:g} {y + 61:g}h{17 * len(values) + 2}"/>')
        if words:
            self.text([], x + 17 * len(values) / 2 - 2, y + 74, words)

    def use(self, flags: Sequence[str], x: float, y: float, _: str) -> None:
        self.parts += [f'<g transform="translate({x:g} {y:g})">', *load(flags[0]).parts, "</g>"]

    def svg(self, label: str = "") -> str:
        """The whole on a ground of its own, so that it can be read on any page."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="dg" viewBox="0 0 {self.width:g} {self.height:g}"'
        )
        name = f' role="img" aria-label="{html.escape(label)}"' if label else ' aria-hidden="true"'
        ground = f'<rect width="{self.width:g}" height="{self.height:g}" rx="8" fill="var(--paper)"/>'
        return "\n".join([f"{head}{name}>", f"<style>{STYLE}</style>", ground, *self.parts, "</svg>\n"])


ATTACKS = {  # the matrix: columns, and rows by the names that they have in records
    "best": "steal",
    "poison": "poison",
    "mimicry": "via\nteacher",
    "PGD": "on\nmodel",
    "knows": "knows\nall",
}
DEFENCES = {
    "nasty": "nasty",
    "stingy": "stingy",
    "AST": "AST",
    "RML, negate": "reversed",
    "PGD-AT": "robust",
    "purifier": "purifier",
    "differentiators": "committee",
}


def crossing(folder: Any) -> Drawing:
    """Attacks by defences; a cell is what the defence takes from the attack's success, in points."""
    d = Drawing(360, 398)
    found = _recorded(folder)
    for place, words in enumerate(ATTACKS.values()):
        d.text(["attack", "bold"], 122 + 52 * place, 14, words)
    for row, (name, shown) in enumerate(DEFENCES.items()):
        y = 42 + 40 * row
        d.text(["own", "bold", "start"], 4, y + 18, shown)
        for place, attack in enumerate(ATTACKS):
            result = None if found is None else _cell(name, attack, found)
            if result is None or result.difference is None:
                d.text(["quiet"], 122 + 52 * place, y + 18, "·")
                continue
            kind = {verdicts.SUPPORTED: "own", verdicts.CONTRADICTED: "attack"}.get(result.verdict, "plain")
            number = "" if result.verdict == verdicts.NOT_REALISED else f" {100 * result.difference.mean:.0f}"
            d.box([kind], 98 + 52 * place, y, 48, 36, tables.MARKS[result.verdict] + number)
    about = "nothing recorded yet" if found is None else f"{records.in_print(found.dataset)}, {found.profile}"
    for row, words in enumerate(
        (
            "points that the defence takes from the attack",
            "✓ fewer   ✗ more   = the same   ? undecided",
            f"∅ not realised   · not tried   ({about})",
        )
    ):
        d.text(["quiet", "start"], 4, 338 + 20 * row, words)
    return d


def _recorded(folder: Any) -> verdicts.Recorded | None:
    for profile in ("small", "quick"):
        frame, runs = records.load(folder, profile, "crossing")
        settings = config.settings("crossing", profile)
        if not frame.empty and panels.current({profile: (settings, frame)}):
            return verdicts.Recorded.of(frame, profile, settings, runs)
    return None


def _cell(defence: str, attack: str, recorded: verdicts.Recorded) -> verdicts.ClaimResult | None:
    """The attack's success without the defence minus with it; None where the chapter does not ask."""
    names = {"AST": "ast", "RML, negate": "negate", "PGD-AT": "pgd-at", "purifier": "input"}
    if attack in ("best", "poison"):
        known = {each.id: each for each in papers()["crossing"].claims}
        claim = known.get(f"{attack}-{names.get(defence, defence)}")
    elif (defence, "harm", f"attack={attack}") not in recorded.rows:
        claim = None
    else:
        first, second = (Quantity(arm, "harm", f"attack={attack}") for arm in ("nothing", defence))
        claim = Claim("crossing", f"{attack}-{defence}", "", "ours", first, second)
    return verdicts.judge(claim, recorded) if claim else None


def load(name: str) -> Drawing:
    """The drawing in ``diagrams/NAME.txt``."""
    drawing = Drawing()
    for line in (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        drawing.add(line)
    return drawing


def drawings(folder: Any) -> dict[str, Drawing]:
    """Every diagram by its file's name; ``folder`` has the records."""
    return {path.stem: load(path.stem) for path in sorted(FOLDER.glob("*.txt"))} | {
        "crossing": crossing(folder)
    }


def write(folder: Any) -> None:
    """Write every diagram that changed."""
    for name, drawing in drawings(folder).items():
        path = FOLDER / f"{name}.svg"
        if not path.is_file() or path.read_text(encoding="utf-8") != drawing.svg():
            with atomic_write(path) as part:
                part.write_text(drawing.svg(), encoding="utf-8")


def inline(text: str, drawn: dict[str, Drawing]) -> str:
    """Markdown with the drawing itself for each image of one, and the line of italics after it as caption."""

    def one(match: re.Match[str]) -> str:
        caption = f"<figcaption>{html.escape(match['caption'])}</figcaption>\n" if match["caption"] else ""
        return f'<figure class="diagram">\n{drawn[match["name"]].svg(match["alt"])}{caption}</figure>'

    return IMAGE.sub(one, text)


if __name__ == "__main__":
    write(records.recorded_folder())
