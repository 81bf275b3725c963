"""Generates example photos, drawings of fruit as small JPEG files: python make_photos.py [folder]"""

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

COLORS = {"apple": (170, 40, 40), "banana": (215, 190, 60), "plum": (95, 45, 120)}
NUM_PER_CLASS = {"train": 80, "val": 20, "test": 20}
WIDTH, HEIGHT = 96, 72


def draw(fruit: str, rng: random.Random) -> Image.Image:
    """Draws the fruit at a random position on a plain background, in slightly random colors."""
    image = Image.new("RGB", (WIDTH, HEIGHT), color_near((120, 110, 100), 60, rng))
    left = rng.randrange(8, 48)
    top = rng.randrange(4, 32)
    size = rng.randrange(24, 40)
    box = (left, top, left + size, top + size)
    fill = color_near(COLORS[fruit], 40, rng)
    canvas = ImageDraw.Draw(image)
    if fruit == "banana":
        canvas.arc(box, start=10, end=170, fill=fill, width=size // 4)
    else:
        canvas.ellipse(box, fill=fill)
        canvas.line((left + size / 2, top - 4, left + size / 2, top + 4), fill=(70, 50, 30), width=2)
    noise = Image.frombytes("RGB", image.size, rng.randbytes(3 * WIDTH * HEIGHT))
    return Image.blend(image.filter(ImageFilter.GaussianBlur(1)), noise, 0.15)


def color_near(color: tuple[int, int, int], distance: int, rng: random.Random) -> tuple[int, ...]:
    """Returns `color` with each channel changed at random by at most `distance`."""
    return tuple(value + rng.randint(-distance, distance) for value in color)


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "photos")
    rng = random.Random(0)
    for split, num_images in NUM_PER_CLASS.items():
        for fruit in COLORS:
            folder = root / split / fruit
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(num_images):
                draw(fruit, rng).save(folder / f"{number:03}.jpg")
    print(f"wrote {sum(NUM_PER_CLASS.values()) * len(COLORS)} photos of {', '.join(COLORS)} to {root}")


if __name__ == "__main__":
    main()
