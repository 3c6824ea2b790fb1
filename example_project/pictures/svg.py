"""Timelines in SVG: small, legible, the same each time, and with a text for those who do not see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape


@dataclass(frozen=True)
class Theme:
    """The colours of one kind of paper."""

    name: str
    paper: str
    ink: str
    quiet: str
    line: str
    good: str
    #: Of the connections, by letter: Okabe and Ito's, which everybody can tell apart.
    connections: tuple[str, ...]


LIGHT = Theme(
    "light", "#ffffff", "#1f2328", "#59636e", "#d1d9e0", "#1a7f37", ("#0072B2", "#C55400", "#7A4FA3", "#2E7D32")
)
DARK = Theme(
    "dark", "#131416", "#e6e8eb", "#9aa4ae", "#3a3f45", "#57d17a", ("#56B4E9", "#FF8C3B", "#C59BEA", "#7FCB84")
)
THEMES = (LIGHT, DARK)

#: About as wide as a letter of the font is, in its size.
_LETTER = 0.56


@dataclass
class Sheet:
    """A picture in the making. Lengths are in pixels, from the upper left corner."""

    theme: Theme
    width: int
    height: int
    title: str
    description: str
    parts: list[str] = field(default_factory=list)

    def rectangle(self, x: float, y: float, width: float, height: float, *, fill: str, opacity: float = 1) -> None:
        """Draw a filled rectangle."""
        see = f' opacity="{opacity:g}"' if opacity != 1 else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.8):.1f}" height="{height:g}" rx="1.5" '
            f'fill="{fill}"{see}/>'
        )

    def held(self, x: float, y: float, width: float, height: float, number: int) -> None:
        """Draw a connection that is held and does nothing: hatched, in its colour."""
        colour = self.theme.connections[number]
        self.rectangle(x, y, width, height, fill=f"url(#hatch{number})")
        self.parts.append(
            f'<rect x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{max(width - 1, 0.3):.1f}" height="{height - 1:g}" '
            f'rx="1.5" fill="none" stroke="{colour}"/>'
        )

    def used(self, x: float, y: float, width: float, height: float, number: int) -> None:
        """Draw a connection that is in use: solid, in its colour."""
        self.rectangle(x, y, width, height, fill=self.theme.connections[number])

    def line(
        self, x: float, y: float, to_x: float, to_y: float, *, dashes: str = "", width: float = 1, ink: str = ""
    ) -> None:
        """Draw a line; *dashes* as in SVG."""
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{ink or self.theme.quiet}" '
            f'stroke-width="{width:g}"{dashed}/>'
        )

    def text(
        self, x: float, y: float, text: str, *, ink: str = "", size: int = 12, anchor: str = "start", bold: bool = False
    ) -> None:
        """Write a line of text, whose baseline begins there."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{ink or self.theme.ink}" font-size="{size}" '
            f'text-anchor="{anchor}"{weight}>'
            f"{escape(text, quote=False)}</text>"
        )

    def cross(self, x: float, y: float, size: float, ink: str) -> None:
        """Draw a cross around a point."""
        self.line(x - size, y - size, x + size, y + size, width=2, ink=ink)
        self.line(x - size, y + size, x + size, y - size, width=2, ink=ink)

    def width_of(self, text: str, size: int = 12) -> float:
        """Return about how wide *text* is."""
        return len(text) * size * _LETTER

    def written(self) -> str:
        """Return the file."""
        hatches = "".join(
            f'<pattern id="hatch{number}" width="5" height="5" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)">'
            f'<rect width="5" height="5" fill="{colour}" opacity=".16"/>'
            f'<line x1="0" y1="0" x2="0" y2="5" stroke="{colour}" stroke-width="1.6" opacity=".7"/></pattern>'
            for number, colour in enumerate(self.theme.connections)
        )
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-labelledby="title desc" '
            "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">",
            f'<title id="title">{escape(self.title, quote=False)}</title>',
            f'<desc id="desc">{escape(self.description, quote=False)}</desc>',
            f"<defs>{hatches}</defs>",
            f'<rect width="{self.width}" height="{self.height}" rx="6" fill="{self.theme.paper}"/>',
            *self.parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"
