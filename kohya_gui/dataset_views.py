"""What the Dataset tab shows, as HTML: everything that came from outside is escaped here.

A click on anything with data-act reaches the page as (act, value).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kohya_gui import thumbs, tokens
from kohya_gui.dataset_findings import Counted, Finding
from kohya_gui.datasets import Found, count
from kohya_gui.pictures import escaped
from kohya_gui.sentences import sentence_of, status
from trainer.data import scan

STRIP = 8


def button(act: str, label: str, value: object = "", *, kind: str = "") -> str:
    """A button that tells the page (act, value)."""
    return (
        f'<button type="button" class="ds-button {kind}" data-act="{act}" data-value="{escaped(value)}">'
        f"{escaped(label)}</button>"
    )


# what was found


def found(seen: Found | None, *, has_other_work: bool = False) -> str:
    """What the path holds in a sentence, and buttons for the usual slips."""
    if seen is None:
        return "Nothing is chosen yet. A path on this machine, or drop files beside it."
    kind = "bad" if seen.what == "unusable" else "ds-found"
    parts = [status(f'<span class="{kind}">{escaped(seen.sentence)}</span>'), _strip(seen)]
    parts += [
        f'<div class="ds-slip">{escaped(slip.sentence)} {button("use", slip.label, slip.path)}</div>'
        for slip in seen.slips
    ]
    if has_other_work and seen.what == "unusable":
        parts.append('<div class="ds-slip">What stands below is still the data set of before.</div>')
    elif has_other_work:
        asked = "What stands below was changed and is not saved."
        adding = button("add-found", "Add these folders to it") if seen.concepts else ""
        parts.append(f'<div class="ds-slip">{asked} {adding} {button("start-found", "Begin anew with these")}</div>')
    return "".join(parts)


def _strip(seen: Found) -> str:
    """A glance at the first pictures of each folder."""
    each = max(1, STRIP // max(1, len(seen.concepts)))
    paths = [path for concept in seen.concepts[:STRIP] for path in scan.list_pictures(concept.folder)[:each]][:STRIP]
    images = [f'<img src="{data}" alt="">' for path in paths if (data := thumbs.thumb(path))]
    return f'<div class="ds-strip">{"".join(images)}</div>' if images else ""


def findings(found_: Sequence[Finding]) -> str:
    """What is wrong with the description, each with the button that mends it."""
    lines = []
    for finding in found_:
        fix = button("fix", finding.fix.label, finding.key, kind="primary") if finding.fix else ""
        lines.append(f'<div class="ds-finding {finding.level}" role="status">{escaped(finding.text)}. {fix}</div>')
    return "".join(lines)


def identifier(words: str, used: Mapping[str, int], num_captions: int) -> str:
    """Token counts of the identifier, and whether captions hold its words already."""
    chips = "".join(button("word", word, word, kind="chip") for word in tokens.RARE_WORDS)
    rare = f'<div class="ds-chips">Rare words: {chips}</div>'
    if not words.strip():
        return f"An identifier that means nothing yet, then what it is: <b>shs dog</b>.{rare}"
    first = words.split()[0]
    pieces = tokens.count(first)
    total = tokens.count(words)
    said = [f"{count(total, 'token')} in all; <b>{escaped(first)}</b> is {count(pieces, 'token')}"]
    if pieces > 1:
        said.append('<span class="warn">a word of one token is learned more easily</span>')
    for word, number in used.items():
        text = f"“{escaped(word)}” stands in {number} of {count(num_captions, 'caption')}"
        plain = word != first
        said.append(f"{text}, as a class may" if plain else f'<span class="warn">{text} already</span>')
    return f"{'; '.join(said)}.{rare}"


# the description


def table(entries: Sequence[Counted], chosen: str) -> str:
    """The folders of the data set, one line each."""
    if not entries:
        return '<p class="ds-empty">No folders yet. Choose pictures above, or add a folder here.</p>'
    head = "<tr><th>Folder</th><th>Pictures</th><th>Repeats</th><th>Words</th><th>Captions</th><th></th></tr>"
    return f'<table class="ds-table">{head}{"".join(_row(entry, chosen) for entry in entries)}</table>'


def _row(entry: Counted, chosen: str) -> str:
    subset = entry.subset
    place = ".".join(map(str, subset.place))
    reg = '<span class="badge">regularisation</span> ' if subset.is_reg else ""
    captions = "metadata" if subset.metadata_file else f"{entry.captions} {escaped(subset.extension)}"
    cells = (
        f'{reg}<span title="{escaped(entry.folder)}">{escaped(entry.folder.name or entry.folder)}</span>',
        str(entry.pictures),
        f"× {subset.repeats} = {entry.uses}",
        escaped(subset.words) or "–",
        captions,
        button("edit", "Change", place) + button("remove", "Remove", place),
    )
    kind = ' class="chosen"' if place == chosen else ""
    return f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def bar(entries: Sequence[Counted], problems: int, *, is_saved: bool, path: str) -> str:
    """The data set in one sentence, by the Save button."""
    if not entries:
        return status("No data set yet: choose pictures above.")
    training = [entry for entry in entries if not entry.subset.is_reg]
    reg = [entry for entry in entries if entry.subset.is_reg]
    text = f"<b>{count(sum(e.pictures for e in training), 'picture')}</b> in {count(len(training), 'folder')}"
    text += f", {count(sum(e.uses for e in training), 'use')} an epoch"
    text += f", {count(sum(e.pictures for e in reg), 'regularisation picture')}" if reg else ""
    text += f'. <span class="todo">{count(problems, "thing")} to mend.</span>' if problems else "."
    saved = f" Saved as <code>{escaped(path)}</code>." if is_saved else " Not saved yet."
    return status(text + saved)


def copying(done: int, total: int) -> str:
    """How far a copy is."""
    share = 100 * done / max(total, 1)
    return f'<div class="ds-progress"><i style="width:{share:.1f}%"></i></div>{status(f"{done:,} of {total:,} files")}'


def good(text: str) -> str:
    """A plain sentence that went well."""
    return status(escaped(text))


def bad(text: str) -> str:
    """A sentence about what cannot be done."""
    return f'<span class="bad" role="alert">{escaped(sentence_of(text))}</span>'
