"""Makes photos to try things out: drawings of fruit, as small JPEG files. python make_photos.py [folder]"""

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

COLOURS = {"apple": (170, 40, 40), "banana": (215, 190, 60), "plum": (95, 45, 120)}
NUM_PER_CLASS = {"train": 80, "val": 20, "test": 20}
WIDTH, HEIGHT = 96, 72


def draw(fruit: str, numbers: random.Random) -> Image.Image:
    """The fruit somewhere on a table, in light of some colour."""
    image = Image.new("RGB", (WIDTH, HEIGHT), colour_near((120, 110, 100), 60, numbers))
    left, top, size = numbers.randrange(8, 48), numbers.randrange(4, 32), numbers.randrange(24, 40)
    box, fill = (left, top, left + size, top + size), colour_near(COLOURS[fruit], 40, numbers)
    pen = ImageDraw.Draw(image)
    if fruit == "banana":
        pen.arc(box, start=10, end=170, fill=fill, width=size // 4)
    else:
        pen.ellipse(box, fill=fill)
        pen.line((left + size / 2, top - 4, left + size / 2, top + 4), fill=(70, 50, 30), width=2)
    noise = Image.frombytes("RGB", image.size, numbers.randbytes(3 * WIDTH * HEIGHT))
    return Image.blend(image.filter(ImageFilter.GaussianBlur(1)), noise, 0.15)


def colour_near(colour: tuple[int, int, int], distance: int, numbers: random.Random) -> tuple[int, ...]:
    return tuple(value + numbers.randint(-distance, distance) for value in colour)


def main() -> None:
    root, numbers = Path(sys.argv[1] if len(sys.argv) > 1 else "photos"), random.Random(0)
    for split, num_images in NUM_PER_CLASS.items():
        for fruit in COLOURS:
            folder = root / split / fruit
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(num_images):
                draw(fruit, numbers).save(folder / f"{number:03}.jpg")
    print(f"{sum(NUM_PER_CLASS.values()) * len(COLOURS)} photos of {', '.join(COLOURS)} are in {root}")


if __name__ == "__main__":
    main()
