"""The loss curve: few points whatever the length, a mean that starts unbiased, well-formed SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from kohya_gui.chart import HEIGHT, WIDTH, Curve, Point, loss_chart, ticks


def curve_of(losses: list[float], **options: int) -> Curve:
    curve = Curve(**options)
    for step, loss in enumerate(losses, start=1):
        curve.add(step, loss)
    return curve


def test_smoothing_starts_at_the_first_loss_and_keeps_a_constant() -> None:
    assert curve_of([0.5]).smooth == pytest.approx(0.5)
    assert curve_of([0.25] * 100).smooth == pytest.approx(0.25)
    assert Curve().smooth is None


def test_smoothing_is_the_weighted_mean_of_the_losses() -> None:
    losses = [1.0, 0.0, 0.5]
    weights = [0.9**2, 0.9, 1.0]
    expected = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    assert curve_of(losses, window=10).smooth == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 7, 399, 400, 401, 12_345, 100_000])
def test_points_stay_few_and_end_at_the_last_step(steps: int) -> None:
    points = curve_of([0.1] * steps, limit=400).points()
    assert 0 < len(points) <= 401
    assert points[-1].step == steps
    assert [p.step for p in points] == sorted({p.step for p in points})
    assert all(p.raw == pytest.approx(0.1) and p.smooth == pytest.approx(0.1) for p in points)


def test_joined_points_hold_the_mean() -> None:
    points = curve_of([0.0, 1.0] * 400, limit=100).points()
    assert all(p.raw == pytest.approx(0.5) for p in points)


def test_a_loss_that_is_no_number_is_left_out() -> None:
    curve = curve_of([0.2, float("nan"), float("inf"), 0.2])
    assert curve.smooth == pytest.approx(0.2)
    assert [p.step for p in curve.points()] == [1, 4]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 400, [0, 100, 200, 300, 400]), (0.12, 0.31, [0.15, 0.2, 0.25, 0.3]), (3, 3, [3])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    "points",
    [[], [Point(1, 0.3, 0.3)], [Point(s, 0.0, 0.0) for s in range(1, 9)], [Point(5, -0.5, -0.5), Point(6, 90.0, 1.0)]],
)
def test_the_drawing_is_well_formed_and_stays_inside(points: list[Point]) -> None:
    root = ET.fromstring(loss_chart(points, total_steps=10))
    assert root.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
    for line in root.iter("polyline"):
        for pair in (line.get("points") or "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT


def test_one_wild_loss_does_not_flatten_the_rest() -> None:
    curve = curve_of([0.1 + 0.001 * (i % 7) for i in range(300)])
    wild = [*curve.points(), Point(301, 1000.0, 0.11)]
    smooth = next(line for line in ET.fromstring(loss_chart(wild)).iter("polyline") if line.get("class") == "smooth")
    heights = [float(pair.split(",")[1]) for pair in (smooth.get("points") or "").split()]
    assert max(heights) - min(heights) > HEIGHT / 20


def test_a_long_run_is_a_small_drawing() -> None:
    assert len(loss_chart(curve_of([0.1] * 50_000).points(), total_steps=50_000)) < 15_000
