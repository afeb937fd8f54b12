"""Draw the bucket histogram as a small SVG: a bar for every training size, over the size's own shape."""

from __future__ import annotations

from collections.abc import Sequence

Bar = tuple[tuple[int, int], int]
"""((width, height), pictures an epoch, repeats included)."""
HEIGHT, TOP, SHAPE, BOTTOM, SIDE = 210, 20, 40, 18, 6
MOST_BARS = 24


def bucket_chart(bars: Sequence[Bar]) -> str:
    """The histogram, from upright to lying sizes; the rarest are drawn together as the last bar when there are many."""
    shown, rest = _fitting(bars)
    if not shown:
        return ""
    most = max(count for _, count in shown)
    slot = min(92.0, max(46.0, 640 / len(shown)))
    width = slot * len(shown) + 2 * SIDE
    room = HEIGHT - TOP - SHAPE - BOTTOM
    longest = max(max(size) for size, _ in shown)
    parts = []
    for number, (size, count) in enumerate(shown):
        centre = SIDE + slot * (number + 0.5)
        parts.append(_bar(size, count, centre, min(slot * 0.62, 44), room * count / most if most else 0))
        parts.append(_shape(size, centre, (SHAPE - 10) / longest))
    base = TOP + room
    parts.append(f'<line class="axis" x1="{SIDE}" x2="{width - SIDE:.0f}" y1="{base}" y2="{base}"/>')
    label = f"Pictures an epoch in {len(bars)} training sizes"
    more = f'<p class="ds-more">and {rest[0]} rarer sizes with {rest[1]} pictures</p>' if rest[0] else ""
    svg = f'<svg class="ds-chart" viewBox="0 0 {width:.0f} {HEIGHT}" style="max-width:{width:.0f}px" role="img"'
    return f'{svg} aria-label="{label}">{"".join(parts)}</svg>{more}'


def _fitting(bars: Sequence[Bar]) -> tuple[list[Bar], tuple[int, int]]:
    """(the bars to draw, (sizes left over, their pictures))."""
    ranked = sorted(bars, key=lambda bar: -bar[1])
    kept, left = ranked[:MOST_BARS], ranked[MOST_BARS:]
    return sorted(kept, key=lambda bar: (bar[0][0] / bar[0][1], bar[0])), (len(left), sum(count for _, count in left))


def _bar(size: tuple[int, int], count: int, centre: float, wide: float, high: float) -> str:
    top = HEIGHT - SHAPE - BOTTOM - high
    title = f"<title>{size[0]}×{size[1]}: {count}</title>"
    rect = (
        f'<rect class="bar" x="{centre - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" rx="4"/>'
    )
    return f'<g>{title}{rect}<text class="count" x="{centre:.1f}" y="{top - 5:.1f}">{count:,}</text></g>'


def _shape(size: tuple[int, int], centre: float, scale: float) -> str:
    wide, high = size[0] * scale, size[1] * scale
    middle = HEIGHT - BOTTOM - SHAPE / 2
    x, y = centre - wide / 2, middle - high / 2
    rect = f'<rect class="shape" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}" rx="2"/>'
    return f'{rect}<text class="size" x="{centre:.1f}" y="{HEIGHT - 4}">{size[0]}×{size[1]}</text>'
