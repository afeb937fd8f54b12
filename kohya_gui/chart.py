"""Draw the loss curve as a small SVG, so that no plotting library travels to the browser every second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 244
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 22


@dataclass(frozen=True)
class Point:
    """One place of the curve: the mean loss of the steps it stands for, and the smoothed loss at the last of them."""

    step: int
    raw: float
    smooth: float


class Curve:
    """The losses of a run in at most `limit` points, however many steps it takes."""

    def __init__(self, *, window: float = 20, limit: int = 400) -> None:
        self._keep = 1 - 1 / max(window, 1.0)
        self._limit = limit
        self._stride = 1
        self._points: list[Point] = []
        self._open: list[tuple[int, float]] = []
        self._sum = 0.0
        self._weight = 0.0

    def add(self, step: int, loss: float) -> None:
        """Take the next step's loss; one that is no number is left out."""
        if not math.isfinite(loss):
            return
        self._sum = self._sum * self._keep + loss
        self._weight = self._weight * self._keep + 1
        self._open.append((step, loss))
        if len(self._open) >= self._stride:
            self._points.append(self._close())
            self._open.clear()
        if len(self._points) >= self._limit:
            self._halve()

    @property
    def smooth(self) -> float | None:
        """The smoothed loss now: a moving mean whose first steps are not drawn towards 0."""
        return self._sum / self._weight if self._weight else None

    def points(self) -> tuple[Point, ...]:
        """The curve so far."""
        return (*self._points, self._close()) if self._open else tuple(self._points)

    def _close(self) -> Point:
        return Point(self._open[-1][0], sum(loss for _, loss in self._open) / len(self._open), self._sum / self._weight)

    def _halve(self) -> None:
        even = len(self._points) // 2 * 2
        left, right = self._points[0:even:2], self._points[1:even:2]
        joined = [Point(b.step, (a.raw + b.raw) / 2, b.smooth) for a, b in zip(left, right, strict=True)]
        self._points = joined + self._points[even:]
        self._stride *= 2


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between two bounds."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def loss_chart(points: Sequence[Point], *, first_step: int = 0, total_steps: int = 0) -> str:
    """The curve as SVG text: the losses faintly, the smoothed loss over them."""
    if not points:
        return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="No loss yet">{_empty()}</svg>'
    low, high = _range(points)
    last = max(total_steps, points[-1].step, first_step + 1)

    def x(step: float) -> float:
        return LEFT + (step - first_step) / (last - first_step) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high - min(max(loss, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    lines = [_y_tick(y(value), value) for value in ticks(low, high, 4)]
    lines += [_x_tick(x(step), step) for step in ticks(first_step, last, 6) if step == int(step)]
    raw = " ".join(f"{x(p.step):.1f},{y(p.raw):.1f}" for p in points)
    smooth = " ".join(f"{x(p.step):.1f},{y(p.smooth):.1f}" for p in points)
    now = points[-1]
    lines.append(f'<polyline class="raw" points="{raw}"/><polyline class="smooth" points="{smooth}"/>')
    lines.append(f'<circle class="now" cx="{x(now.step):.1f}" cy="{y(now.smooth):.1f}" r="3.5"/>')
    label = f"Loss by step; smoothed {now.smooth:.4f} at step {now.step}"
    body = "".join(lines)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'


def _range(points: Sequence[Point]) -> tuple[float, float]:
    """Bounds that hold the smoothed curve and all but the wildest losses."""
    raw = sorted(p.raw for p in points)
    cut = len(raw) // 50
    low = min(raw[cut], min(p.smooth for p in points))
    high = max(raw[len(raw) - 1 - cut], max(p.smooth for p in points))
    room = (high - low) * 0.06 or max(abs(high) * 0.1, 1e-6)
    return max(low - room, 0.0) if low >= 0 else low - room, high + room


def _y_tick(y: float, value: float) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'


def _x_tick(x: float, step: float) -> str:
    anchor = "end" if x > WIDTH - RIGHT - 14 else "middle"
    return f'<text x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{step:.0f}</text>'


def _empty() -> str:
    base = HEIGHT - BOTTOM
    axis = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'
    return (
        f'{axis}<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">the curve begins with the first step</text>'
    )
