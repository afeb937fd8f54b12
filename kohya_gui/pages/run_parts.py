"""The run view's parts as HTML, made from a RunView alone; everything a run or a person wrote is escaped."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from PIL import Image

from kohya_gui.chart import loss_chart
from kohya_gui.run_view import Pair, Row, RunView, Shown, read_trigger
from trainer.events import Sample

THUMB_PIXELS = 256
LARGE_PIXELS = 1024
MAX_PICTURE_PIXELS = 64_000_000
SHORT_LOG_LINES = 6
ENDED_LOG_LINES = 3
FAILED_LOG_LINES = 20
QUIET_SECONDS = 60.0
QUIET_STEPS = 20
FULL_LOG_BYTES = 200_000

WORDS: dict[Shown, str] = {
    "queued": "Queued",
    "starting": "Starting",
    "running": "Running",
    "stopping": "Stopping",
    "finished": "Finished",
    "stopped": "Stopped",
    "refused": "Not started",
    "failed": "Failed",
    "killed": "Ended by hand",
    "died": "Died",
}


# numbers as people read them


def clock(seconds: float) -> str:
    """12 s, 3:05 or 1:02:33."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def about(seconds: float) -> str:
    """A duration as one would say it: "20 s", "4 min", "2 h 10 min", "3 days"."""
    if seconds < 55:
        return f"{max(round(seconds / 5) * 5, 5)} s"
    minutes = max(round(seconds / 60), 1)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days"


def size(num_bytes: float) -> str:
    """730 kB, 18.4 MB, 512 MB or 4.27 GB."""
    if num_bytes < 1e6:
        return f"{num_bytes / 1e3:.0f} kB"
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:.{1 if num_bytes < 1e8 else 0}f} MB"
    return f"{num_bytes / 1e9:.2f} GB"


def _at(moment: float, now: float) -> str:
    local = time.localtime(moment)
    same_day = time.localtime(now)[:3] == local[:3]
    return time.strftime("%H:%M" if same_day else "%a %H:%M", local)


# state and numbers


def head(view: RunView, now: float) -> str:
    """Name, state, what it is busy with, for how long, and how far it is."""
    title = view.start.output_name if view.start else short_name(view.name)
    pill = f'<span class="rv-pill rv-{view.shown}">{WORDS[view.shown]}</span>'
    line = f'{pill}<h2 title="{escape(str(view.folder.path))}">{escape(title)}</h2>{_activity(view, now)}'
    percent = 100 * view.fraction
    bar = (
        f'<div class="rv-bar rv-{view.state}" role="progressbar" aria-valuenow="{percent:.0f}" aria-label="Steps done">'
    )
    return f'<div class="rv-head">{line}</div>{bar}<i style="width:{percent:.2f}%"></i></div>'


def _activity(view: RunView, now: float) -> str:
    if not view.is_living:
        ended = view.status.ended if view.status else None
        text = f"after {clock(view.seconds_taken)}" if view.seconds_taken is not None else ""
        when = f", {_at(ended, now)}" if ended else ""
        return f'<span class="rv-phase">{text}{when}</span>'
    phase = view.activity
    count = f" <b>{phase.done}/{phase.total}</b>" if phase.total else ""
    since = f'<span class="rv-clock">{clock(now - view.activity_since)}</span>'
    silence = now - view.last_sign
    # a sample picture takes many times a step, and says nothing on the way
    patience = max(QUIET_SECONDS, QUIET_STEPS * (view.seconds_median or 0))
    quiet = f'<span class="rv-quiet">last sign {clock(silence)} ago</span>' if silence > patience else ""
    return f'<span class="rv-phase">{escape(phase.name)}{count}</span>{since}{quiet}'


def tiles(view: RunView, now: float) -> str:
    """The numbers of the run side by side."""
    start, step = view.start, view.step
    total = f"of {start.total_steps:,}" if start and start.total_steps else ""
    epochs = f"of {start.epochs}" if start and start.epochs else ""
    cells = [
        ("Step", f"{step.step:,}" if step else "–", total),
        ("Epoch", f"{step.epoch}" if step else "–", epochs),
        _end_tile(view, now),
        ("Seconds a step", f"{step.seconds:.2f}" if step else "–", _median(view)),
        ("Memory", size(step.memory_mb * 1e6) if step else "–", "peak"),
        ("Loss, smoothed", f"{view.smooth_loss:.4f}" if view.smooth_loss is not None else "–", ""),
    ]
    if measured := view.validation:
        cells.append(("Validation loss", f"{measured.loss:.4f}", f"after step {measured.step:,}"))
    return f'<dl class="rv-tiles">{"".join(_tile(*cell) for cell in cells)}</dl>'


def _tile(label: str, value: str, more: str) -> str:
    return f"<div><dt>{escape(label)}</dt><dd>{escape(value)} <small>{escape(more)}</small></dd></div>"


def _end_tile(view: RunView, now: float) -> tuple[str, str, str]:
    if not view.is_living:
        ended = view.status.ended if view.status else None
        return "Ended", _at(ended, now) if ended else "–", ""
    if view.end_time is None:
        return "Ends", "–", "known after the first step"
    return "Ends", _at(view.end_time, now), f"in {about(max(view.end_time - now, 0))}"


def _median(view: RunView) -> str:
    return f"median {view.seconds_median:.2f}" if view.seconds_median is not None else ""


def _rates(view: RunView) -> str:
    rates = dict.fromkeys(f"{rate:.3g}" for rate in view.step.lr.values()) if view.step else {}
    return f"learning rate {' / '.join(rates)}" if rates else ""


def chart(view: RunView) -> str:
    """The loss curve with its heading."""
    first = view.start.first_step if view.start else 0
    total = view.start.total_steps if view.start else 0
    key = f'{escape(_rates(view))}<i class="raw"></i>each step<i class="smooth"></i>smoothed'
    drawn = loss_chart(view.curve, first_step=first, total_steps=total)
    return f'<div class="rv-card"><h3>Loss <span class="rv-key">{key}</span></h3>{drawn}</div>'


# pictures


def samples(view: RunView) -> str:
    """The newest sample of every prompt beside the one from before training."""
    if view.samples:
        body = "".join(_pair(view, pair) for pair in view.samples)
        columns = "one" if len(view.samples) == 1 else "two" if len(view.samples) == 2 else "many"
    else:
        coming = "The first pictures come before the first step, when sample prompts are set."
        body, columns = f'<p class="rv-empty">{coming if view.is_living else "No sample pictures."}</p>', "none"
    return f'<div class="rv-card"><h3>Samples</h3><div class="rv-samples rv-{columns}">{body}</div></div>'


def _pair(view: RunView, pair: Pair) -> str:
    before = _figure(view, pair.before, _step_word(pair.before.step))
    newest = _figure(view, pair.newest, _step_word(pair.newest.step)) if pair.newest else _waiting(view)
    prompt = escape(pair.before.prompt)
    return f'<figure><div>{before}{newest}</div><figcaption title="{prompt}">{prompt}</figcaption></figure>'


def _figure(view: RunView, sample: Sample, label: str) -> str:
    data = picture(view.folder.path, sample.path, THUMB_PIXELS)
    image = f'<img src="{data}" alt="{escape(label)}: {escape(sample.prompt)}">' if data else "<s></s>"
    place = f'data-sample="{escape(sample.path)}" data-label="{escape(label)}"'
    return f'<button type="button" {place}>{image}<em>{escape(label)}</em></button>'


def _waiting(view: RunView) -> str:
    return f'<span class="rv-next"><em>{"the next comes here" if view.is_living else "no later one"}</em></span>'


def _step_word(step: int) -> str:
    return "before" if step == 0 else f"step {step}"


def large(view: RunView, path: str, label: str) -> str:
    """One sample over the whole page."""
    data = picture(view.folder.path, path, LARGE_PIXELS)
    if not data:
        return ""
    prompt = next((p.before.prompt for p in view.samples for s in (p.before, p.newest) if s and s.path == path), "")
    body = f'<img src="{data}" alt="{escape(prompt)}"><p><b>{escape(label)}</b> {escape(prompt)}</p>'
    return f'<div class="rv-large" role="dialog" aria-label="Sample">{body}</div>'


def picture(folder: Path, relative: str, pixels: int) -> str:
    """A picture of the run as a data URI of a re-encoded, smaller copy; "" for what is none or lies elsewhere."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        return ""
    try:
        return _encoded(path, path.stat().st_mtime_ns, pixels)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""


@lru_cache(maxsize=128)
def _encoded(path: Path, modified: int, pixels: int) -> str:
    with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
        if image.width * image.height > MAX_PICTURE_PIXELS:
            raise ValueError("too large to show")
        small = image.convert("RGB")
    small.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# how it ended, what it saved, what it warns of


def notes(view: RunView) -> str:
    """The outcome of a run that ended, the last saved file of one that goes on, and the warnings."""
    return f'<div class="rv-notes">{_outcome(view)}{_warnings(view.warnings)}</div>'


def _outcome(view: RunView) -> str:
    match view.state:
        case "finished":
            return _finished(view)
        case "stopped":
            return _stopped(view)
        case "failed" | "killed" | "died":
            return _failed(view)
    if view.stop_asked is not None:
        text = "Stop was asked for: the step is finished and the state saved, so that the run can go on later."
        return f'<div class="rv-box rv-stopped">{text} If it does not end, press <b>End it now</b>.</div>{_saved(view)}'
    return _saved(view)


IN_A_PROMPT = {"train_network": "<lora:{}:1>", "train_textual_inversion": "{}"}
"""How what a task made is called for in A1111 and Forge, by its file's name; whole models are chosen, not called."""


def _finished(view: RunView) -> str:
    path = view.finished.path if view.finished else view.model.path if view.model else ""
    written = IN_A_PROMPT.get(view.start.task if view.start else "", "")
    facts = [("File", path), ("In a prompt", written.format(Path(path).stem) if path else "")]
    facts.append(("Trigger word", read_trigger(view.folder)))
    took = f" in {clock(view.seconds_taken)}" if view.seconds_taken is not None else ""
    rows = "".join(_fact(label, value) for label, value in facts if value)
    return f'<div class="rv-box rv-finished"><b>Finished{took}.</b><dl>{rows}</dl></div>'


def _stopped(view: RunView) -> str:
    if view.stopped is None:
        return f'<div class="rv-box rv-stopped"><b>Stopped.</b> {escape(view.cause)}</div>'
    if not view.stopped.state:  # pictures, no training
        head = f"<b>Stopped after {view.stopped.step}.</b> What it has made stays."
        return f'<div class="rv-box rv-stopped">{head}</div>{_saved(view)}'
    how = " Press <b>Go on</b>: a new run takes it up there." if view.resume_from else ""
    head = f"<b>Stopped after step {view.stopped.step}.</b> It can go on later from its saved state.{how}"
    return f'<div class="rv-box rv-stopped">{head}<dl>{_fact("State", view.stopped.state)}</dl></div>{_saved(view)}'


def _failed(view: RunView) -> str:
    cause = view.cause or "The last lines of the log say more."
    # a message that lists several problems has a line for each; the list below says the same with more detail
    sentence = cause if len(view.problems) < 2 else f"{len(view.problems)} things stand in the way"
    listed = "".join(f"<li>{escape(p)}</li>" for p in view.problems) if len(view.problems) > 1 else ""
    titles = {"refused": "Not started", "failed": "This run failed", "killed": "This run was ended"}
    title = titles.get(view.shown, "This run died")
    text = f"<b>{title}.</b> {escape(_sentence(sentence))}"
    resume = view.resume_point
    later = f"<dl>{_fact('Last saved state', resume.path)}</dl>" if resume else ""
    return f'<div class="rv-box rv-failed" role="alert">{text}<ul>{listed}</ul>{later}</div>{_saved(view)}'


def _saved(view: RunView) -> str:
    model = view.model
    if model is None:
        return '<p class="rv-saved">Nothing saved yet.</p>' if view.is_living else ""
    words = f"Last saved, step {model.step}, {size(model.size_bytes)}"
    return f'<dl class="rv-saved">{_fact(words, model.path)}</dl>'


def _warnings(texts: Sequence[str]) -> str:
    if not texts:
        return ""
    listed = "".join(f"<li>{escape(text)}</li>" for text in texts)
    word = "1 warning" if len(texts) == 1 else f"{len(texts)} warnings"
    first = f": {escape(texts[0])}" if len(texts) == 1 else ""
    if first:
        return f'<p class="rv-warning"><b>{word}</b>{first}</p>'
    return f'<details class="rv-warning"><summary><b>{word}</b></summary><ul>{listed}</ul></details>'


def _fact(label: str, value: str) -> str:
    shown = escape(value)
    copy = f'<button type="button" class="rv-copy" data-copy="{shown}" title="Copy">Copy</button>'
    return f"<div><dt>{escape(label)}</dt><dd><code>{shown}</code>{copy}</dd></div>"


def _sentence(text: str) -> str:
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?", ":")) else f"{text}."


# the log


def short_log(view: RunView) -> str:
    """The end of the console: more of it when it has to explain, less when all is well and over."""
    ended = view.status.last_lines if view.status else ()
    lines = ended or view.last_lines
    failed = view.state in ("failed", "killed", "died")
    count = FAILED_LOG_LINES if failed else SHORT_LOG_LINES if view.is_living else ENDED_LOG_LINES
    text = escape("\n".join(lines[-count:])) or "The log begins when the trainer starts."
    kind = "rv-log rv-living" if view.is_living else "rv-log"
    return f'<pre class="{kind}" aria-label="Last lines of the log"><code>{text}</code></pre>'


def full_log(view: RunView) -> str:
    """The console as far as a page can sensibly hold it, and where the whole of it lies."""
    path = view.folder.console_log
    if not path.exists():
        return '<p class="rv-empty">No log yet.</p>'
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - FULL_LOG_BYTES)
        file.seek(start)
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rsplit("\r", 1)[-1] for line in text.splitlines()][1 if start else 0 :]
    cut = f"The last {len(lines)} lines of " if start else ""
    where = f'<p class="rv-where">{cut}<code>{escape(str(path))}</code></p>'
    return where + f'<pre class="rv-full">{escape(chr(10).join(lines))}</pre>'


# the list


def run_list(rows: Sequence[Row], selected: str) -> str:
    """All runs, newest first, as buttons."""
    if not rows:
        return '<div class="rv-list"><p class="rv-empty">No runs yet. Start one on the Train tab.</p></div>'
    return f'<div class="rv-list">{"".join(_row(row, row.name == selected) for row in rows)}</div>'


def short_name(run_name: str) -> str:
    """The output name within <day>-<time>-<output name>."""
    return run_name.split("-", 2)[-1]


def _row(row: Row, is_selected: bool) -> str:
    title = escape(short_name(row.name))
    when = time.strftime("%d %b %H:%M", time.localtime(row.when))
    steps = f"step {row.step:,} of {row.total_steps:,}" if row.total_steps else "no step yet"
    loss = f", loss {row.loss:.3g}" if row.loss is not None else ""
    state = f'<i class="rv-dot rv-{row.shown}"></i>{WORDS[row.shown]}'
    current = ' aria-current="true"' if is_selected else ""
    body = f"<b>{title}</b><time>{when}</time><span>{state}</span><small>{steps}{loss}</small>"
    return f'<button type="button" data-run="{escape(row.name)}" title="{escape(row.name)}"{current}>{body}</button>'


EMPTY = """\
<div class="rv-hero"><h2>No run to show yet</h2>
<p>Press <b>Start</b> on the Train tab: progress, loss and sample pictures appear here as the training goes on.
Closing this page does not stop a run.</p></div>"""
