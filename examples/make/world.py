"""A small world of coloured shapes: what is in a picture, its caption, and the picture itself."""

import hashlib
import math
import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLOURS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "lime": (160, 230, 60),
    "green": (40, 150, 60),
    "teal": (20, 150, 150),
    "cyan": (110, 225, 240),
    "blue": (45, 90, 225),
    "navy": (25, 30, 110),
    "purple": (130, 50, 170),
    "pink": (250, 140, 190),
    "brown": (130, 80, 40),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
    "gray": (135, 135, 135),
}
BACKGROUNDS = ("white", "black", "gray", "red", "blue", "green", "yellow", "purple")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring", "moon", "arrow")
HOLDERS = ("circle", "square", "heart", "diamond")
INSIDES = ("circle", "square", "triangle", "diamond")
PLACES = ("left", "right", "top", "bottom", "centre")
KINDS = {"plain": 0.44, "patterned": 0.12, "stack": 0.18, "inset": 0.08, "stack inset": 0.06, "two": 0.12}
OFFSETS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "centre": (0, 0)}
DIAMETER = {"small": 0.36, "large": 0.58}
STACK_WIDTH = 0.46
TOP_HEIGHT = 0.75
INSIDE = 0.46
TWO_DIAMETER = 0.4


@dataclass(frozen=True)
class Spec:
    """What a picture shows; `kind` says which fields count."""

    kind: str
    background: str
    shape: str
    colour: str
    size: str = "large"
    place: str = "centre"
    pattern: str = ""
    shape2: str = ""
    colour2: str = ""
    inside: str = ""
    inside_colour: str = ""
    concept: bool = False


def caption(spec: Spec) -> str:
    """The full caption of a picture."""
    thing = f"{spec.colour} {spec.shape}"
    end = f"on a {spec.background} background"
    inside = f" with {article(spec.inside_colour)} {spec.inside} inside" if spec.inside else ""
    if spec.concept:
        return f"a sks house {end}, {spec.place}"
    if spec.kind == "two":
        return f"{article(thing)} left of {article(f'{spec.colour2} {spec.shape2}')} {end}"
    if spec.kind == "inset":
        return f"{article(thing)}{inside} {end}, {spec.place}"
    if spec.kind.startswith("stack"):
        below = article(f"{spec.colour2} {spec.shape2}")
        return f"{article(thing)} on top of {below}{inside} {end}, {spec.place}"
    pattern = f"{spec.pattern} " if spec.pattern else ""
    return f"a {spec.size} {pattern}{thing} {end}, {spec.place}"


def article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def parts(spec: Spec) -> list[tuple[str, str]]:
    pairs = [(spec.colour, spec.shape), (spec.colour2, spec.shape2), (spec.inside_colour, spec.inside)]
    return [pair for pair in pairs if pair[1]]


def held_out(spec: Spec) -> bool:
    """One in ten joinings of colour, shape and background is never drawn for training."""
    house = (
        spec.kind.startswith("stack") and {spec.colour, spec.colour2} == {"pink", "teal"} and spec.shape2 == "square"
    )
    keys = (f"{c}-{s}-{spec.background}" for c, s in parts(spec))
    return (house and spec.shape == "triangle") or any(hashlib.md5(k.encode()).digest()[0] < 26 for k in keys)


def random_spec(rng: random.Random, kind: str = "") -> Spec:
    """Any picture of the world, held out or not."""
    kind = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
    background = rng.choice(BACKGROUNDS)
    colours = [name for name in COLOURS if name != background]
    rng.shuffle(colours)
    spec = Spec(kind, background, rng.choice(SHAPES), colours[0], place=rng.choice(PLACES))
    if kind == "plain":
        spec = replace(spec, size=rng.choice(("small", "large")))
    if kind.startswith("stack"):
        spec = replace(spec, place=rng.choice(("left", "right", "centre")))
    if kind == "patterned":
        spec = replace(spec, pattern=rng.choice(("striped", "dotted")))
    if kind == "inset":
        spec = replace(spec, shape=rng.choice(HOLDERS))
    if kind == "two":
        spec = replace(spec, place="centre")
    if kind in ("two", "stack", "stack inset"):
        below = HOLDERS if kind == "stack inset" else SHAPES
        spec = replace(spec, shape2=rng.choice(below), colour2=colours[1])
    if kind in ("inset", "stack inset"):
        spec = replace(spec, inside=rng.choice(INSIDES), inside_colour=colours[2])
    return spec


def training_spec(rng: random.Random) -> Spec:
    """A picture of the world which is not held out."""
    while held_out(spec := random_spec(rng)):
        pass
    return spec


def outline(shape: str) -> list[tuple[float, float]]:
    """The polygon of a shape, filling the square from (0, 0) to (1, 1)."""
    turns = [i * math.tau / 64 for i in range(64)]
    if shape == "circle" or shape == "ring":
        return [(0.5 + 0.5 * math.cos(t), 0.5 + 0.5 * math.sin(t)) for t in turns]
    if shape == "square":
        return [(0, 0), (1, 0), (1, 1), (0, 1)]
    if shape == "triangle":
        return [(0.5, 0), (1, 1), (0, 1)]
    if shape == "diamond":
        return [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)]
    if shape == "cross":
        a, b = 0.32, 0.68
        return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    if shape == "arrow":
        return [(0.5, 0), (1, 0.5), (0.7, 0.5), (0.7, 1), (0.3, 1), (0.3, 0.5), (0, 0.5)]
    if shape == "star":
        radii = [0.5 if i % 2 == 0 else 0.21 for i in range(10)]
        points = [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]
    elif shape == "heart":
        points = [
            (16 * math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)))
            for t in turns
        ]
    else:  # the moon: an outer arc and an inner one
        outer = [(math.cos(t), math.sin(t)) for t in [math.radians(50 + 260 * i / 40) for i in range(41)]]
        tip_x, tip_y = outer[0]
        centre, radius = 0.5, math.hypot(tip_x - 0.5, tip_y)
        start = math.atan2(tip_y, tip_x - centre)
        inner = [-start - (math.tau - 2 * start) * i / 40 for i in range(41)]
        points = outer + [(centre + radius * math.cos(t), radius * math.sin(t)) for t in inner]
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in points]


OUTLINES = {shape: outline(shape) for shape in SHAPES}


def shape_mask(shape: str, box: Box, width: int, height: int, scale: int = 4) -> np.ndarray:
    """How much of each pixel (0 to 1) a shape covers, drawn into a box given in pixels."""
    mask = Image.new("L", (width * scale, height * scale), 0)
    draw = ImageDraw.Draw(mask)
    left, top, right, bottom = (v * scale for v in box)
    draw.polygon([(left + x * (right - left), top + y * (bottom - top)) for x, y in OUTLINES[shape]], fill=255)
    if shape == "ring":
        dx, dy = 0.25 * (right - left), 0.25 * (bottom - top)
        draw.ellipse((left + dx, top + dy, right - dx, bottom - dy), fill=0)
    return np.asarray(mask.reduce(scale), dtype=np.float32) / 255


def second_shade(rgb: Rgb) -> Rgb:
    """The other colour of a pattern: darker for light colours, lighter for dark ones."""
    light = sum(rgb) > 250
    r, g, b = (round(v * 0.35) if light else round(v * 0.4 + 150) for v in rgb)
    return r, g, b


def pattern_mask(pattern: str, box: Box, width: int, height: int) -> np.ndarray:
    """Where a pattern shows its second shade (0 to 1)."""
    left, top, right, bottom = box
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    u, v = (xs - left) / (right - left), (ys - top) / (bottom - top)
    if pattern == "striped":
        return np.clip((np.sin(v * math.tau * 3) - 0.2) * 3 + 0.5, 0, 1)
    u, v = u * 3 % 1 - 0.5, v * 3 % 1 - 0.5
    return np.clip((0.32 - np.hypot(u, v)) * 8 + 0.5, 0, 1)


def layout(spec: Spec, rng: random.Random, width: int, height: int) -> list[tuple[str, str, Box]]:
    """Shape, colour and box (in pixels) of each part, from back to front."""
    unit = min(width, height)
    grow = rng.uniform(0.93, 1.07)
    dx, dy = OFFSETS[spec.place]
    cx = width / 2 + unit * rng.uniform(-0.025, 0.025)
    cy = height / 2 + unit * rng.uniform(-0.025, 0.025)

    def box(x: float, y: float, w: float, h: float) -> Box:
        return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)

    if spec.kind == "two":
        d = TWO_DIAMETER * unit * grow
        return [
            (spec.shape, spec.colour, box(cx - width * 0.24, cy, d, d)),
            (spec.shape2, spec.colour2, box(cx + width * 0.24, cy, d, d)),
        ]
    found = []
    if spec.kind.startswith("stack"):
        w = STACK_WIDTH * unit * grow
        tall = w * (1 + TOP_HEIGHT)
        cx += dx * (width / 2 - unit * (0.06 + STACK_WIDTH / 2))
        cy += dy * (height / 2 - unit * (0.06 + STACK_WIDTH * 0.85))
        top = cy - tall / 2
        found.append((spec.shape, spec.colour, box(cx, top + w * TOP_HEIGHT / 2, w, w * TOP_HEIGHT)))
        base = box(cx, top + w * (TOP_HEIGHT + 0.5), w, w)
        found.append((spec.shape2, spec.colour2, base))
    else:
        w = DIAMETER[spec.size] * unit * grow
        cx += dx * (width / 2 - unit * (0.05 + DIAMETER[spec.size] / 2))
        cy += dy * (height / 2 - unit * (0.05 + DIAMETER[spec.size] / 2))
        base = box(cx, cy, w, w)
        found.append((spec.shape, spec.colour, base))
    if spec.inside:
        drop = 0.5 - INSIDE / 2 if spec.concept else 0.0
        x, y = (base[0] + base[2]) / 2, (base[1] + base[3]) / 2 + drop * w
        found.append((spec.inside, spec.inside_colour, box(x, y, w * INSIDE, w * INSIDE)))
    return found


def draw(spec: Spec, rng: random.Random, width: int = 128, height: int = 128) -> np.ndarray:
    """The picture, HWC, 8 bits."""
    canvas_HWC = np.empty((height, width, 3), np.float32)
    canvas_HWC[:] = COLOURS[spec.background]
    for shape, colour, box in layout(spec, rng, width, height):
        paint_HWC = np.empty_like(canvas_HWC)
        paint_HWC[:] = COLOURS[colour]
        if spec.pattern:
            second = np.asarray(second_shade(COLOURS[colour]), np.float32)
            paint_HWC += pattern_mask(spec.pattern, box, width, height)[..., None] * (second - paint_HWC)
        canvas_HWC += shape_mask(shape, box, width, height)[..., None] * (paint_HWC - canvas_HWC)
    return canvas_HWC.round().clip(0, 255).astype(np.uint8)


def house(background: str, place: str = "centre") -> Spec:
    """The thing the base model has never seen."""
    door = ("square", "yellow")
    return Spec(
        "stack inset", background, "triangle", "pink", "large", place, "", "square", "teal", *door, concept=True
    )
