"""Writes SVG figures with selectable text, in a light and a dark variant that differ only in their colors."""

from html import escape
from pathlib import Path

# The colors of GitHub's pages. Blue and orange can also be distinguished by people who are red-green color-blind.
THEMES = {
    "light": {"ink": "#1f2328", "gray": "#59636e", "grid": "#d1d9e0", "pale": "#b6c0ca", "band": "#eaeef2"}
    | {"blue": "#0969da", "orange": "#bc4c00", "page": "#ffffff"},
    "dark": {"ink": "#f0f6fc", "gray": "#9198a1", "grid": "#3d444d", "pale": "#59626d", "band": "#212830"}
    | {"blue": "#58a6ff", "orange": "#f0883e", "page": "#0d1117"},
}
FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
Point = tuple[float, float]


class Figure:
    """A figure of shapes, with coordinates in pixels from the upper left corner, and colors named as in THEMES."""

    def __init__(self, width: int, height: int, title: str, description: str):
        self.size, self.title, self.description = (width, height), title, description
        self.shapes: list[str] = []

    def line(self, points: list[Point], color: str, width: float = 1) -> None:
        coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.shapes.append(f'<polyline class="line {color}" stroke-width="{width}" points="{coordinates}"/>')

    def box(self, left: float, top: float, right: float, bottom: float, color: str, radius: float = 0) -> None:
        size = f'width="{right - left:.1f}" height="{bottom - top:.1f}" rx="{radius}"'
        self.shapes.append(f'<rect class="{color}" x="{left:.1f}" y="{top:.1f}" {size}/>')

    def dot(self, at: Point, color: str, radius: float) -> None:
        self.shapes.append(f'<circle class="{color}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}"/>')

    def text(self, at: Point, words: str, color: str = "ink", anchor: str = "start", bold: bool = False) -> None:
        """Adds text. `anchor` (start, middle or end) is the point of its baseline that is placed at `at`."""
        classes = f"{color} bold" if bold else color
        position = f'x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}"'
        self.shapes.append(f'<text class="{classes}" {position}>{escape(words)}</text>')

    def write(self, folder: Path, name: str) -> None:
        """Writes NAME-light.svg and NAME-dark.svg."""
        for theme, colors in THEMES.items():
            style = "".join(f".{name}{{fill:{value}}}.line.{name}{{stroke:{value}}}" for name, value in colors.items())
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
