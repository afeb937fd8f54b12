"""Says without any weights whether a picture shows what its description asks for."""

from functools import cache

import numpy as np
from PIL import Image

from examples.make import world
from examples.make.world import Spec

GRID = 32
NAMES = tuple(world.COLOURS)
PALETTE_KC = np.asarray([world.COLOURS[name] for name in NAMES], np.float32)
STACK_SPLIT = world.TOP_HEIGHT / (1 + world.TOP_HEIGHT)


def nearest(rgb: np.ndarray) -> str:
    return NAMES[int(np.abs(PALETTE_KC - rgb).sum(1).argmin())]


def background(image_HWC: np.ndarray) -> np.ndarray:
    """The median of the picture's border."""
    edges = [image_HWC[:3], image_HWC[-3:], image_HWC[:, :3], image_HWC[:, -3:]]
    return np.median(np.concatenate([e.reshape(-1, 3) for e in edges]), axis=0)


def resized(mask_HW: np.ndarray) -> np.ndarray:
    picture = Image.fromarray((mask_HW * 255).astype(np.uint8))
    return np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX)) > 127


@cache
def template(shape: str) -> np.ndarray:
    return world.shape_mask(shape, (0, 0, GRID, GRID), GRID, GRID) > 0.5


def box_of(mask_HW: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of the mask, without stray pixels."""
    rows, cols = np.flatnonzero(mask_HW.sum(1) >= 2), np.flatnonzero(mask_HW.sum(0) >= 2)
    if len(rows) < 4 or len(cols) < 4:
        return None
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def shape_of(mask_HW: np.ndarray) -> str:
    """The shape whose template overlaps best, or nothing when none does well."""
    box = box_of(mask_HW)
    if box is None:
        return ""
    seen = resized(mask_HW[box[1] : box[3], box[0] : box[2]])
    overlaps = {s: (seen & template(s)).sum() / (seen | template(s)).sum() for s in world.SHAPES}
    best = max(overlaps, key=lambda s: overlaps[s])
    return best if overlaps[best] > 0.7 else ""


def core(mask_HW: np.ndarray) -> np.ndarray:
    """The mask without its blurred edge."""
    inner = mask_HW.copy()
    for axis in (0, 1):
        for shift in (-2, 2):
            inner &= np.roll(mask_HW, shift, axis)
    return inner if inner.sum() > 12 else mask_HW


def part_right(image_HWC: np.ndarray, mask_HW: np.ndarray, shape: str, colour: str) -> dict[str, bool]:
    pixels_NC = image_HWC[core(mask_HW)]
    seen = nearest(np.median(pixels_NC, axis=0)) if len(pixels_NC) else ""
    return {"shape": shape_of(mask_HW) == shape, "colour": seen == colour}


def pattern_of(image_HWC: np.ndarray, mask_HW: np.ndarray, colour: str) -> str:
    """Striped when the second shade changes from row to row far more than from column to column, else dotted."""
    first, second = (
        np.asarray(c, np.float32) for c in (world.COLOURS[colour], world.second_shade(world.COLOURS[colour]))
    )
    axis = second - first
    dark_HW = ((image_HWC - first) @ axis / (axis @ axis)).clip(0, 1)
    inner_HW = core(mask_HW)
    share = dark_HW[inner_HW].mean() if inner_HW.any() else 0.0
    if share < 0.12:
        return ""
    along, across = (
        np.var([line[inside].mean() for line, inside in zip(dark, inner, strict=True) if inside.sum() > 3])
        for dark, inner in ((dark_HW, inner_HW), (dark_HW.T, inner_HW.T))
    )
    return "striped" if along > 2.5 * across else "dotted"


def main_colour(image_HWC: np.ndarray, mask_HW: np.ndarray, colour: str) -> bool:
    """A patterned thing has the colour when its brighter (or darker) pixels have it."""
    pixels_NC = image_HWC[core(mask_HW)]
    first, second = (
        np.asarray(c, np.float32) for c in (world.COLOURS[colour], world.second_shade(world.COLOURS[colour]))
    )
    axis = second - first
    along_N = (pixels_NC - first) @ axis
    if len(along_N) < 8:
        return False
    return nearest(np.median(pixels_NC[along_N <= np.quantile(along_N, 0.4)], axis=0)) == colour


def place_and_size(box: tuple[int, int, int, int], width: int, height: int) -> tuple[str, str]:
    dx = (box[0] + box[2] - width) / 2 / width
    dy = (box[1] + box[3] - height) / 2 / height
    size = "large" if max(box[2] - box[0], box[3] - box[1]) > 0.46 * min(width, height) else "small"
    if max(abs(dx), abs(dy)) < 0.1:
        return "centre", size
    if abs(dx) > abs(dy):
        return ("left" if dx < 0 else "right"), size
    return ("top" if dy < 0 else "bottom"), size


def concept_right(image_HWC: np.ndarray, box: tuple[int, int, int, int]) -> dict[str, bool]:
    """Colours inside the subject's own template: close, and varying alike."""
    want_HWC = template_house()
    crop = Image.fromarray(image_HWC.astype(np.uint8)).crop(box).resize((GRID, GRID), Image.Resampling.BOX)
    seen_HWC = np.asarray(crop, np.float32)
    inside_HW = want_HWC.sum(2) >= 0
    seen_NC, want_NC = seen_HWC[inside_HW], want_HWC[inside_HW]
    error = np.abs(seen_NC - want_NC).mean() / 255
    match = 0.0
    if seen_NC.std(0).max() > 5:
        match = np.corrcoef((seen_NC - seen_NC.mean(0)).ravel(), (want_NC - want_NC.mean(0)).ravel())[0, 1]
    tall = (box[3] - box[1]) / (box[2] - box[0])
    return {"colours": bool(error < 0.15), "parts": bool(match > 0.7), "outline": 1.3 < tall < 2.2}


@cache
def template_house() -> np.ndarray:
    """The subject, bbox-normalised; -1 outside it."""
    wide, tall = 80, round(80 * (1 + world.TOP_HEIGHT))
    canvas_HWC = np.full((tall, wide, 3), -1, np.float32)
    drop = wide * world.INSIDE
    boxes = (
        ("triangle", "pink", (0, 0, wide, wide * world.TOP_HEIGHT)),
        ("square", "teal", (0, wide * world.TOP_HEIGHT, wide, tall)),
        ("square", "yellow", ((wide - drop) / 2, tall - drop, (wide + drop) / 2, tall)),
    )
    for shape, colour, box in boxes:
        canvas_HWC[world.shape_mask(shape, box, wide, tall, 1) > 0.5] = world.COLOURS[colour]
    ys = ((np.arange(GRID) + 0.5) * tall / GRID).astype(int)
    xs = ((np.arange(GRID) + 0.5) * wide / GRID).astype(int)
    return canvas_HWC[ys][:, xs]


def score(image: np.ndarray | Image.Image, spec: Spec) -> dict[str, bool]:
    """Which attributes are right; the picture is right when all are."""
    image_HWC = np.asarray(image, np.float32)
    height, width = image_HWC.shape[:2]
    behind = background(image_HWC)
    found = {"background": nearest(behind) == spec.background}
    mask_HW = np.abs(image_HWC - behind).sum(2) > 75
    box = box_of(mask_HW)
    if box is None:
        return found | {"thing": False}
    place, size = place_and_size(box, width, height)
    if spec.concept:
        return found | {"place": place == spec.place} | concept_right(image_HWC, box)
    if spec.kind == "two":
        for at, columns, part in (
            (1, np.s_[: width // 2], world.parts(spec)[0]),
            (2, np.s_[width // 2 :], world.parts(spec)[1]),
        ):
            half = part_right(image_HWC[:, columns], mask_HW[:, columns], part[1], part[0])
            found |= {f"{key} {at}": value for key, value in half.items()}
        return found
    found["place"] = place == spec.place
    whole_HW, rows = mask_HW, np.arange(height)[:, None]
    if spec.kind.startswith("stack"):
        split = box[1] + (box[3] - box[1]) * STACK_SPLIT
        top = part_right(image_HWC, mask_HW & (rows < split - 1), spec.shape, spec.colour)
        found |= {f"{key} 1": value for key, value in top.items()}
        whole_HW = mask_HW & (rows > split + 1)
        box = box_of(whole_HW) or box
    shape, colour = (spec.shape2, spec.colour2) if spec.kind.startswith("stack") else (spec.shape, spec.colour)
    if spec.inside:
        outer, inner = (np.asarray(world.COLOURS[c], np.float32) for c in (colour, spec.inside_colour))
        nearer_HW = np.abs(image_HWC - inner).sum(2) < np.abs(image_HWC - outer).sum(2)
        middle_HW = np.zeros_like(whole_HW)
        dx, dy = (box[2] - box[0]) * 0.23, (box[3] - box[1]) * 0.23
        middle_HW[round(box[1] + dy) : round(box[3] - dy), round(box[0] + dx) : round(box[2] - dx)] = True
        inner_HW = whole_HW & nearer_HW & middle_HW
        inset = part_right(image_HWC, inner_HW, spec.inside, spec.inside_colour)
        ring_HW = whole_HW & ~nearer_HW
        found |= {f"{key} inside": value for key, value in inset.items()}
        found |= {
            "shape": shape_of(whole_HW) == shape,
            "colour": bool(ring_HW.any()) and nearest(np.median(image_HWC[core(ring_HW)], axis=0)) == colour,
        }
        return found
    if spec.pattern:
        return found | {
            "shape": shape_of(mask_HW) == shape,
            "colour": main_colour(image_HWC, mask_HW, colour),
            "pattern": pattern_of(image_HWC, mask_HW, colour) == spec.pattern,
        }
    if spec.kind == "plain":
        found["size"] = size == spec.size
        found["pattern"] = pattern_of(image_HWC, mask_HW, colour) == ""
    return found | part_right(image_HWC, whole_HW, shape, colour)


def right(image: np.ndarray | Image.Image, spec: Spec) -> bool:
    return all(score(image, spec).values())
