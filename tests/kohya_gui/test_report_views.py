"""What the Dataset tab shows of a report: escaped, paged, and only what is in sight is decoded."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from PIL import Image

from kohya_gui import dataset_chart, dataset_preview, dataset_toml, report_views, thumbs
from kohya_gui.dataset_report import Looks, Picture, Report, Warned
from kohya_gui.report_views import View
from kohya_gui.settings import Settings


def planned(number: int, path: Path, **more: object) -> Picture:
    values = {
        "number": number,
        "path": path,
        "size": (96, 64),
        "bucket": (64, 64),
        "resized": (96, 64),
        "crop": (16, 0, 80, 64),
        "repeats": 2,
        "is_reg": False,
        "caption": "a dog",
        "caption_source": "file",
        "place": (0, 0),
    }
    return Picture(**{**values, **more})  # type: ignore[arg-type]


def report(pictures: list[Picture], *warnings: Warned) -> Report:
    dataset = {
        "resolution": [64, 64],
        "batch_size": 1,
        "steps_per_epoch": 8,
        "subsets": [{"image_dir": "/p", "caption_extension": ".txt"}],
        "buckets": [{"size": [64, 64], "count": 8}],
    }
    return Report((dataset,), tuple(pictures), warnings, (), ())


def test_what_comes_from_files_is_escaped(tmp_path: Path) -> None:
    odd = planned(0, tmp_path / "<b>a&.png", caption='"><script>alert(1)</script>')
    shown = report([odd], Warned("<i>new", str(odd.path), "<img src=x onerror=alert(1)>"))
    view = View(excluded=frozenset([str(odd.path)]))
    for text in (
        report_views.summary(shown),
        report_views.warnings(shown, view),
        report_views.grid(shown, view),
        report_views.detail(shown, odd, view),
        report_views.draws([("<script>", 3)], 75),
        report_views.difference("<b>", "old <s>", "new <u>"),
    ):
        assert not re.search(r"<(script|b>a|i>new|img src=x|s>|u>)", text), text


def test_a_page_decodes_what_it_shows(tmp_path: Path) -> None:
    for number in range(report_views.PAGE_SIZE + 5):
        Image.new("RGB", (64, 48), (number, 0, 0)).save(tmp_path / f"{number}.png")
    pictures = [planned(n, tmp_path / f"{n}.png") for n in range(report_views.PAGE_SIZE + 5)]
    shown = report(pictures)
    before = thumbs._thumb.cache_info().misses
    text = report_views.grid(shown, View(page=1))
    assert thumbs._thumb.cache_info().misses - before == 5 == text.count("<img")
    assert "2 of 2" in text
    assert report_views.grid(shown, View(page=99)) == text
    assert report_views.grid(shown, View(page=-3)) == report_views.grid(shown, View())


def test_the_grid_shows_a_kind_of_warning(tmp_path: Path) -> None:
    pictures = [planned(n, tmp_path / f"{n}.png", is_reg=n > 1) for n in range(4)]
    shown = report(pictures, Warned("tiny", str(tmp_path / "1.png"), "is tiny"))
    numbers = lambda view: [p.number for p in report_views.chosen_pictures(shown, view)]  # noqa: E731
    assert numbers(View()) == [0, 1, 2, 3]
    assert numbers(View(shown="tiny")) == [1]
    assert numbers(View(shown="reg")) == [2, 3]
    assert numbers(View(shown="excluded", excluded=frozenset([str(tmp_path / "3.png")]))) == [3]


def test_the_crop_is_drawn_where_it_is_cut(tmp_path: Path) -> None:
    text = report_views.detail(report([]), planned(0, tmp_path / "gone.png"), View())
    assert "left:16.67%;top:0.00%;width:66.67%;height:100.00%" in text
    assert "cut to 64×64" in text and "cannot be read" in text
    whole = report_views.detail(report([]), planned(0, tmp_path / "gone.png", crop=(0, 0, 96, 64)), View())
    assert "nothing cut off" in whole


def test_the_histogram_stands_to_scale() -> None:
    text = dataset_chart.bucket_chart([((512, 512), 40), ((384, 640), 10)])
    heights = [float(h) for h in re.findall(r'class="bar"[^>]*height="([\d.]+)"', text)]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01)  # upright sizes come first
    assert "384×640" in text and ">40<" in text
    many = dataset_chart.bucket_chart([((64 * n, 512), n) for n in range(1, 40)])
    assert many.count('class="bar"') == dataset_chart.MOST_BARS and "15 rarer sizes with 120 pictures" in many
    assert dataset_chart.bucket_chart([]) == ""


def test_draws_are_the_trainers_own(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "a.png")
    (folder / "a.txt").write_text("shs dog, {red|blue} ball, grass, sun")
    table = {"image_dir": str(folder), "caption_extension": ".txt", "shuffle_caption": True, "keep_tokens": 1}
    text = dataset_toml.new([{**table, "enable_wildcard": True}], resolution=64)
    looks = Looks(Settings.of(tmp_path / "home"))
    (*_, key) = looks.run(text, tmp_path, "tab")
    assert isinstance(key, str)
    shown = looks.report(key)
    assert shown is not None
    drawn = dataset_preview.draws(looks.draft(key), shown, shown.pictures[0])
    assert len(drawn) == 10 and len({caption for caption, _ in drawn}) > 3
    assert all(caption.startswith("shs dog,") and number == 9 for caption, number in drawn)
    assert {word for caption, _ in drawn for word in ("red", "blue") if word in caption} == {"red", "blue"}
    assert drawn == dataset_preview.draws(looks.draft(key), shown, shown.pictures[0])
    tried = dataset_preview.draws(looks.draft(key), shown, shown.pictures[0], caption="a cat")
    assert {caption for caption, _ in tried} == {"a cat"}


@pytest.mark.timing
def test_the_first_page_of_five_thousand_comes_soon(tmp_path: Path) -> None:
    for number in range(5000):
        Image.new("RGB", (64, 48), (number % 256, number // 20 % 256, 90)).save(tmp_path / f"{number:04d}.png")
    pictures = [planned(n, tmp_path / f"{n:04d}.png") for n in range(5000)]
    shown = report(pictures, *(Warned("tiny", str(p.path), "is tiny") for p in pictures))
    began = time.monotonic()
    grid, warnings = report_views.grid(shown, View()), report_views.warnings(shown, View())
    assert time.monotonic() - began < 3
    assert grid.count("<img") == report_views.PAGE_SIZE and len(grid) + len(warnings) < 500_000
