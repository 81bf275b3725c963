"""Writes SVG with text as text, in a light and a dark variant that differ in their colours only."""

from html import escape
from pathlib import Path

# Of GitHub's pages. Blue and orange differ for people who do not tell red from green, too.
THEMES = {
    "light": {"ink": "#1f2328", "grey": "#59636e", "grid": "#d1d9e0", "pale": "#b6c0ca", "band": "#eaeef2"}
    | {"blue": "#0969da", "orange": "#bc4c00", "page": "#ffffff"},
    "dark": {"ink": "#f0f6fc", "grey": "#9198a1", "grid": "#3d444d", "pale": "#59626d", "band": "#212830"}
    | {"blue": "#58a6ff", "orange": "#f0883e", "page": "#0d1117"},
}
FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
Point = tuple[float, float]


class Picture:
    """Shapes in pixels from the upper left corner. Colours are names of a theme's."""

    def __init__(self, width: int, height: int, title: str, description: str):
        self.size, self.title, self.description = (width, height), title, description
        self.shapes: list[str] = []

    def line(self, points: list[Point], colour: str, width: float = 1, dash: str = "") -> None:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = f' stroke-dasharray="{dash}"' if dash else ""
        self.shapes.append(f'<polyline class="line {colour}" stroke-width="{width}"{dash} points="{places}"/>')

    def box(self, left: float, top: float, right: float, bottom: float, colour: str, radius: float = 0) -> None:
        size = f'width="{right - left:.1f}" height="{bottom - top:.1f}" rx="{radius}"'
        self.shapes.append(f'<rect class="{colour}" x="{left:.1f}" y="{top:.1f}" {size}/>')

    def dot(self, at: Point, colour: str, radius: float) -> None:
        self.shapes.append(f'<circle class="{colour}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}"/>')

    def text(self, at: Point, words: str, colour: str = "ink", anchor: str = "start", bold: bool = False) -> None:
        """`anchor` is start, middle or end: which part of the words is at that place, on their base line."""
        classes = f"{colour} bold" if bold else colour
        place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}"'
        self.shapes.append(f'<text class="{classes}" {place}>{escape(words)}</text>')

    def write(self, folder: Path, name: str) -> None:
        """Writes NAME-light.svg and NAME-dark.svg."""
        for theme, colours in THEMES.items():
            style = "".join(f".{name}{{fill:{value}}}.line.{name}{{stroke:{value}}}" for name, value in colours.items())
            style += ".line{fill:none;stroke-linejoin:round;stroke-linecap:round}.bold{font-weight:600}"
            style += f"text{{font:16px {FONT}}}"
            width, height = self.size
            lines = [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
                f'height="{height}" role="img" aria-labelledby="title description">',
                f'<title id="title">{escape(self.title)}</title>',
                f'<desc id="description">{escape(self.description)}</desc>',
                f"<style>{style}</style>",
                *self.shapes,
                "</svg>",
            ]
            (folder / f"{name}-{theme}.svg").write_text("\n".join(lines) + "\n")
