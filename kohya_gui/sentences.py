"""What the Train page says, as HTML: everything that came from outside is escaped here."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kohya_gui import pictures
from kohya_gui.pictures import Seen, escaped
from kohya_gui.request import MODEL, Request
from trainer.errors import Problem, TrainerError
from trainer.formats.model_facts import inspect_model
from trainer.store import Preset

PREDICTION = {"epsilon": "predicts noise (epsilon)", "v_prediction": "predicts velocity (v)"}


def model(path: Path | None) -> str:
    """Type, prediction and size of a model, or why it cannot be used."""
    if path is None:
        return "No model is chosen yet."
    try:
        facts = inspect_model(path)
    except TrainerError as error:
        return _bad(" ".join(problem_text(p) for p in error.problems))
    prediction = PREDICTION.get(facts.prediction, "prediction type unknown: taken for epsilon")
    layout = "a folder in the diffusers layout" if facts.layout == "diffusers" else "a single file"
    size = f"{size_text(facts.size_bytes)}, {layout}"
    return f'<span class="badge">{escaped(facts.detail)}</span> {escaped(prediction)} · {escaped(size)}'


def counts(path: Path | None) -> str:
    """What lies in the folder, with thumbnails."""
    if path is None:
        return "No pictures are chosen yet."
    seen = pictures.look(path)
    if seen.problem:
        return _bad(sentence_of(seen.problem))
    more = (
        f' <span class="warn">Also captions ending in {escaped(", ".join(seen.others))}; not used.</span>'
        if seen.others
        else ""
    )
    own = " Its own repeats, captions and class pictures count." if seen.is_dataset else ""
    strip = f'<div class="strip">{pictures.strip(seen.folders[0], seen.pictures)}</div>' if seen.folders else ""
    return f"<b>{escaped(seen.words)}</b>.{own}{more}{strip}"


def class_counts(path: Path) -> str:
    """What lies in the class pictures' folder."""
    seen = pictures.look(path)
    if seen.problem:
        return _bad(sentence_of(seen.problem))
    return f"<b>{escaped(seen.words)}</b>. As many of them are used as of your pictures, in turn."


def trigger(path: Path | None, word: str) -> str:
    """Where the trigger word will be read from."""
    seen = pictures.look(path) if path is not None else Seen()
    if not seen.pictures or seen.is_dataset:
        return ""
    if not word.strip():
        return "" if seen.captions == seen.pictures else "Needed, since there are pictures without captions."
    if not seen.captions:
        return f"Every picture is trained with the caption <b>{escaped(word.strip())}</b>."
    found = pictures.trigger_count(seen, word)
    text = f"In {found} of {seen.captions} captions."
    if seen.captions < seen.pictures:
        text += f" {seen.pictures - seen.captions} pictures without a caption are trained with it."
    kind = "" if found else ' class="warn"'
    return f"<span{kind}>{escaped(text)}</span>"


def result_path(folder: Path, name: str, *, is_free: bool) -> str:
    """The whole path of the finished file."""
    if not name:
        return ""
    path = escaped(folder / f"{name}.safetensors")
    return f"<code>{path}</code>" if is_free else f'<code>{path}</code> <span class="warn">is taken.</span>'


def memory(values: Mapping[str, Any]) -> str:
    """What a memory preset sets."""
    return "Sets " + ", ".join(f"<code>{escaped(k)} = {escaped(value_text(v))}</code>" for k, v in values.items())


def preset_note(preset: Preset) -> str:
    """Which preset the form started from."""
    return f"These settings started from <b>{escaped(preset.name)}</b>. {escaped(preset.about)}"


def changes(differences: Sequence[tuple[str, Any, Any]]) -> str:
    """What loading a preset changed."""
    if not differences:
        return "<p>Loaded; nothing changed.</p>"
    rows = "".join(
        f"<tr><td>{escaped(name)}</td><td>{escaped(value_text(old))} → <b>{escaped(value_text(new))}</b></td></tr>"
        for name, old, new in differences
    )
    return f"<p>Loaded; {len(differences)} changed:</p><table>{rows}</table>"


def saved(path: Path, *, replaced: bool) -> str:
    """Where a preset was saved."""
    return f"{'Replaced' if replaced else 'Saved'} <code>{escaped(path)}</code>."


def refused(sentences: Sequence[str]) -> str:
    """Files that were not taken from an upload."""
    return "".join(f'<div class="bad">{escaped(s)}</div>' for s in sentences)


def todo(asked: Request, seen: Seen) -> str:
    """What is still to be done before Start makes sense, "" when nothing is."""
    steps = []
    if not str(asked.value(MODEL, "")).strip():
        steps.append("choose a base model")
    if not seen.pictures:
        steps.append("choose pictures")
    elif not seen.is_dataset and seen.captions < seen.pictures and not asked.trigger.strip():
        steps.append("give a trigger word")
    if not steps:
        return ""
    text = " and ".join([", ".join(steps[:-1]), steps[-1]] if len(steps) > 1 else steps)
    return f"To do: {text}."


# problems


def problem_text(problem: Problem) -> str:
    """A problem beside its field: the option's name stands there already."""
    got = f" (got {problem.value})" if problem.value is not None and problem.value not in problem.message else ""
    return sentence_of(problem.message + got) + (f" {sentence_of(problem.remedy)}" if problem.remedy else "")


def problems_json(problems: Sequence[Problem]) -> str:
    """For the page's script, which puts each beside its field: {problems: [{option, text, severity}]}."""
    return json.dumps({"problems": _by_option(problems)})


def live_problems(problems: Sequence[Problem], checked: Collection[str]) -> str:
    """As problems_json, of the values alone while the person still types: other lines stay, nothing scrolls."""
    return json.dumps({"live": True, "checked": sorted(checked), "problems": _by_option(problems)})


def _by_option(problems: Sequence[Problem]) -> list[dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for p in problems:
        entry = found.setdefault(p.option, {"option": p.option, "text": "", "severity": p.severity})
        entry["text"] = f"{entry['text']} {problem_text(p)}".strip()
    return list(found.values())


def refusal(problems: Sequence[Problem], fields: Mapping[str, str]) -> str:
    """Why nothing was started, by the Start button: links to the fields (name -> label), else whole sentences."""
    named = [option for option in dict.fromkeys(p.option for p in problems) if option in fields]
    links = [f'<a href="#opt-{escaped(option)}">{escaped(fields[option])}</a>' for option in named]
    rest = [p for p in problems if p.option not in fields]
    loose = [escaped(f"{p.option}: {problem_text(p)}" if p.option else problem_text(p)) for p in rest]
    count = len(problems)
    head = f"Not started: {count} thing{'' if count == 1 else 's'} to mend."
    return status(f'<span class="todo">{head}</span> {", ".join(links)} {"<br>".join(loose)}')


def problems_list(problems: Sequence[Problem]) -> str:
    """Problems one below the other, each with its option's name."""
    lines = [f"{p.option}: {problem_text(p)}" if p.option else problem_text(p) for p in problems]
    return "".join(f'<div class="field-error">{escaped(line)}</div>' for line in lines)


def started(run_name: str) -> str:
    """Where to look after Start."""
    return status(f"The run <b>{escaped(run_name)}</b> is under way; see the tab Runs.")


# words


def status(html: str) -> str:
    """A line that screen readers say when it changes."""
    return f'<span role="status">{html}</span>'


def sentence_of(text: str) -> str:
    """Text that begins with a capital and ends with a stop."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}" if text else ""


def value_text(value: Any) -> str:
    """A value for people."""
    if value is None or value == "" or value == []:
        return "unset"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def size_text(num_bytes: int) -> str:
    """ "21 MB", "4.3 GB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _bad(text: str) -> str:
    return f'<span class="bad" role="alert">{escaped(text)}</span>'
