"""What the Dataset tab shows of a report: tiles, histogram, warnings, thumbnails, one picture; all text is escaped."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kohya_gui import thumbs, tokens
from kohya_gui.dataset_chart import bucket_chart
from kohya_gui.dataset_report import Look, Picture, Report, Warned, is_caption
from kohya_gui.dataset_views import button
from kohya_gui.datasets import count
from kohya_gui.pictures import escaped
from kohya_gui.sentences import sentence_of, status

PAGE_SIZE = 36
SHOWN = 4
KINDS: Mapping[str, str] = {
    "bad_file": "Cannot be used",
    "caption_extension": "Captions under another ending",
    "missing_caption": "Without a caption of their own",
    "too_many_tokens": "Captions that are cut off",
    "near_duplicate": "Nearly the same picture",
    "upscaled": "Enlarged pictures",
    "tiny": "Tiny pictures",
    "huge": "Very large pictures",
    "reg_surplus": "More regularisation pictures than are used",
}
SOURCES = {"file": "caption file", "class_tokens": "words of the folder", "metadata": "metadata file", "empty": "empty"}


@dataclass(frozen=True)
class View:
    """What of a report is in sight. shown: "all", or the kind of warning, or "reg", "excluded". chosen: -1 for none.
    mending: the caption file that cannot be used and is being written anew, "" for none."""

    page: int = 0
    shown: str = "all"
    chosen: int = -1
    excluded: frozenset[str] = frozenset()
    mending: str = ""


def progress(look: Look) -> str:
    """How far a look is."""
    if not look.total:
        return status("Starting… the pictures are read by a process of its own.")
    share = 100 * look.done / look.total
    text = f"{look.done:,} of {look.total:,} pictures read"
    return f'<div class="ds-progress"><i style="width:{share:.1f}%"></i></div>{status(text)}'


def summary(report: Report) -> str:
    """Tiles: pictures, steps, sizes, captions; or what is wrong with the settings."""
    if report.problems:
        return "".join(f'<div class="ds-finding bad">{escaped(sentence_of(text))}</div>' for text in report.problems)
    tiles = []
    for dataset in report.datasets:
        size = "×".join(map(str, dataset["resolution"]))
        tiles.append(
            _tile(f"{dataset['steps_per_epoch']:,}", f"steps an epoch at {size}, batch {dataset['batch_size']}")
        )
    training = [p for p in report.pictures if not p.is_reg]
    reg = len(report.pictures) - len(training)
    tiles.insert(0, _tile(f"{len(training):,}", "training pictures" + (f", {reg:,} regularisation" if reg else "")))
    sources = Counter(p.caption_source for p in training)
    said = ", ".join(f"{number:,} by {SOURCES.get(source, source)}" for source, number in sources.most_common())
    tiles.append(_tile(f"{sources['file'] + sources['metadata']:,}", f"have a caption of their own ({said})"))
    notes = "".join(f"<p>{escaped(sentence_of(note))}</p>" for note in report.notes)
    return f'<div class="ds-tiles">{"".join(tiles)}</div>{notes}'


def _tile(number: str, text: str) -> str:
    return f"<div><b>{number}</b><span>{escaped(text)}</span></div>"


def histogram(report: Report) -> str:
    """The buckets of every dataset."""
    charts = []
    for dataset in report.datasets:
        bars = [((int(b["size"][0]), int(b["size"][1])), int(b["count"])) for b in dataset["buckets"]]
        title = (
            f"<h3>Training sizes <small>{count(len(bars), 'bucket')}; pictures an epoch, repeats included</small></h3>"
        )
        charts.append(title + bucket_chart(bars) if bars else "")
    return "".join(charts)


def warnings(report: Report, view: View) -> str:
    """Warnings by kind, the first of each with its buttons."""
    by_path = {str(p.path): p for p in reversed(report.pictures)}
    kinds: dict[str, list[Warned]] = {}
    for warned in report.warnings:
        kinds.setdefault(warned.kind, []).append(warned)
    if not kinds and not report.problems:
        return '<h3>Warnings</h3><p class="ds-fine">Nothing to complain about.</p>'
    parts = [_warning_kind(kind, entries, by_path, view) for kind, entries in kinds.items()]
    return f"<h3>Warnings</h3>{''.join(parts)}" if parts else ""


def _warning_kind(kind: str, entries: Sequence[Warned], by_path: Mapping[str, Picture], view: View) -> str:
    title = f"{escaped(KINDS.get(kind, kind.replace('_', ' ').capitalize()))} <b>{len(entries):,}</b>"
    known = any(entry.path in by_path for entry in entries)
    more = button("show", "Show all" if len(entries) > SHOWN else "Show", kind) if known else ""
    lines = "".join(_warning(entry, by_path.get(entry.path), view) for entry in entries[:SHOWN])
    left = len(entries) - SHOWN
    rest = f'<p class="ds-more">and {left:,} more</p>' if left > 0 else ""
    return f'<div class="ds-kind" data-kind="{escaped(kind)}"><h4>{title} {more}</h4>{lines}{rest}</div>'


def _warning(entry: Warned, picture: Picture | None, view: View) -> str:
    name = entry.path.replace("\\", "/").rpartition("/")[2]
    buttons = ""
    if picture is not None:
        buttons = button("open", "Open", picture.number)
        if picture.caption_source != "metadata":
            buttons += button("caption", "Caption", picture.number)
    elif entry.kind == "bad_file" and is_caption(entry.path):
        buttons += button("mend", "Caption", entry.path)
    if picture is not None or entry.kind == "bad_file":
        is_out = entry.path in view.excluded
        buttons += button("include" if is_out else "exclude", "Take back" if is_out else "Exclude", entry.path)
    text = f'<span title="{escaped(entry.path)}"><b>{escaped(name)}</b> {escaped(entry.message)}</span>'
    return f'<div class="ds-warning">{text}<span class="ds-acts">{buttons}</span></div>'


def chosen_pictures(report: Report, view: View) -> list[Picture]:
    """The pictures that the grid pages through."""
    if view.shown == "reg":
        return [p for p in report.pictures if p.is_reg]
    if view.shown == "excluded":
        return [p for p in report.pictures if str(p.path) in view.excluded]
    if view.shown in ("all", ""):
        return list(report.pictures)
    paths = {warned.path for warned in report.warnings if warned.kind == view.shown}
    return [p for p in report.pictures if str(p.path) in paths]


def grid(report: Report, view: View) -> str:
    """One page of thumbnails: only these are decoded."""
    pictures = chosen_pictures(report, view)
    pages = max(1, -(-len(pictures) // PAGE_SIZE))
    page = min(max(view.page, 0), pages - 1)
    shown = pictures[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    warned = {entry.path for entry in report.warnings}
    cells = "".join(_cell(picture, view, warned) for picture in shown)
    return f'{_grid_head(report, view, len(pictures), page, pages)}<div class="ds-grid">{cells}</div>'


def _grid_head(report: Report, view: View, number: int, page: int, pages: int) -> str:
    kinds = dict.fromkeys(warned.kind for warned in report.warnings if warned.path)
    ways = {"all": "All pictures"}
    if any(p.is_reg for p in report.pictures):
        ways["reg"] = "Regularisation"
    ways |= {kind: KINDS.get(kind, kind) for kind in kinds if kind not in ("bad_file", "reg_surplus")}
    if view.excluded:
        ways["excluded"] = "Excluded"
    tabs = "".join(
        button("show", label, way, kind="chip on" if way == (view.shown or "all") else "chip")
        for way, label in ways.items()
    )
    turn = (
        button("page", "‹", page - 1) + f"<span>{page + 1} of {pages}</span>" + button("page", "›", page + 1)
        if pages > 1
        else ""
    )
    return f'<div class="ds-gridhead"><span>{tabs}</span><span class="ds-pager">{number:,} {turn}</span></div>'


def _cell(picture: Picture, view: View, warned: Collection[str]) -> str:
    data = thumbs.thumb(picture.path)
    path = str(picture.path)
    kinds = ["out"] if path in view.excluded else []
    kinds += ["warned"] if path in warned else []
    kinds += ["chosen"] if picture.number == view.chosen else []
    image = f'<img src="{data}" alt="" loading="lazy">' if data else "<em>gone</em>"
    title = escaped(f"{picture.path.name}: {picture.caption or 'no caption'}")
    return (
        f'<button type="button" class="ds-cell {" ".join(kinds)}" data-act="open" data-value="{picture.number}" '
        f'title="{title}">{image}</button>'
    )


def exclusions(report: Report | None, view: View) -> str:
    """What is left out, in a line."""
    if report is None or not view.excluded:
        return ""
    said = f"{count(len(view.excluded), 'picture')} excluded. Your files stay as they are."
    return f'<div class="ds-slip">{said} {button("include-all", "Take all back")}</div>'


# one picture


def detail(report: Report, picture: Picture, view: View) -> str:
    """A picture with its crop, and how it will be trained."""
    data = thumbs.preview(picture.path)
    left, top, right, bottom = picture.crop
    wide, high = picture.resized
    box = (
        f"left:{100 * left / wide:.2f}%;top:{100 * top / high:.2f}%;"
        f"width:{100 * (right - left) / wide:.2f}%;height:{100 * (bottom - top) / high:.2f}%"
    )
    # the whole crop stands inside the picture; a picture that is not cropped shows a frame around all of it
    image = f'<img src="{data}" alt="{escaped(picture.path.name)}">' if data else "<em>it cannot be read any more</em>"
    cut = picture.crop != (0, 0, wide, high)
    crop = f"cut to {right - left}×{bottom - top}" if cut else "nothing cut off"
    folder = report.subset_of(picture)
    facts = {
        "Size": f"{_by(picture.size)} → {_by(picture.resized)}, {crop}",
        "Bucket": _by(picture.bucket),
        "Used": f"{picture.repeats}× an epoch" + (", as regularisation" if picture.is_reg else ""),
        "Caption from": SOURCES.get(picture.caption_source, picture.caption_source),
        "Folder": str(folder.get("image_dir", "")),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escaped(value)}</dd>" for name, value in facts.items())
    is_out = str(picture.path) in view.excluded
    leave = button("include" if is_out else "exclude", "Take back" if is_out else "Exclude", picture.path)
    return (
        f"<h3>{escaped(picture.path.name)} {leave}</h3>"
        f'<div class="ds-picture"><div>{image}<i class="ds-crop" style="{box}"></i></div></div><dl>{rows}</dl>'
    )


def draws(captions: Sequence[tuple[str, int]], limit: int) -> str:
    """What the model will read: ten draws of the final caption with their tokens."""
    if not captions:
        return ""
    lines = []
    for text, number in captions:
        kind = ' class="warn"' if number > limit else ""
        shown = escaped(text) if text else "<em>empty</em>"
        lines.append(f'<li><span{kind} title="tokens">{number}</span>{shown}</li>')
    most = max(number for _, number in captions)
    note = f"{count(len(captions), 'draw')}, with tokens; the model reads {limit}"
    if most > limit:
        room = tokens.room(most)
        more = f"max_token_length {room} holds it all" if room else "even 225 cannot hold it all"
        note += f', <span class="warn">what is more is cut off: {more}</span>'
    return f'<h4>What the model will read <small>{note}</small></h4><ol class="ds-draws">{"".join(lines)}</ol>'


def difference(path: str, old: str | None, new: str) -> str:
    """Old and new caption, before it is written."""
    if old is None:
        return f'<p>A new file <code>{escaped(path)}</code>:</p><div class="ds-diff"><ins>{escaped(new)}</ins></div>'
    words = difflib.SequenceMatcher(None, old.split(" "), new.split(" "), autojunk=False)
    parts = []
    for kind, a, b, c, d in words.get_opcodes():
        if kind == "equal":
            parts.append(escaped(" ".join(old.split(" ")[a:b])))
            continue
        parts += [f"<del>{escaped(' '.join(old.split(' ')[a:b]))}</del>"] if b > a else []
        parts += [f"<ins>{escaped(' '.join(new.split(' ')[c:d]))}</ins>"] if d > c else []
    return f'<p><code>{escaped(path)}</code> will change:</p><div class="ds-diff">{" ".join(parts)}</div>'


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
