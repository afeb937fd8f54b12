"""Events: written whole, read back typed, from any offset."""

import json
from pathlib import Path

from trainer.events import KINDS, Error, Events, Finished, Phase, Sample, Step, read_events


def step(number: int) -> Step:
    return Step(number, 1, 0.5, 0.4, {"unet": 1e-4}, 0.1, 0.2, 100.0)


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    events = Events(tmp_path / "e.jsonl")
    said = [step(1), Sample(1, 0, "samples/a.png", "<b>ü</b>\n", 3), Error("no"), Finished(1, "x", 2.0)]
    for event in said:
        events.emit(event)
    lines, _ = read_events(tmp_path / "e.jsonl")
    assert [line.event for line in lines] == said
    assert lines[0].time <= lines[-1].time


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    file = tmp_path / "e.jsonl"
    Events(file).emit(step(1))
    with file.open("ab") as f:
        f.write(b'{"kind": "step", "ti')
    lines, offset = read_events(file)
    assert len(lines) == 1
    whole = json.dumps({"kind": "phase", "time": 1, "name": "x", "done": 0, "total": 0}).encode()
    file.write_bytes(file.read_bytes()[:offset] + whole + b"\n")
    lines, _ = read_events(file, offset)
    assert [line.event for line in lines] == [Phase("x")]


def test_unknown_kinds_and_fields_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "e.jsonl"
    file.write_text('{"kind": "dance", "time": 1}\n{"kind": "phase", "time": 1, "name": "x", "mood": 2}\nnot json\n')
    assert [line.event for line in read_events(file)[0]] == [Phase("x")]


def test_a_missing_file_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none", 7) == ([], 7)


def test_without_a_path_nothing_is_written() -> None:
    Events(None).emit(step(1))


def test_progress_is_thinned_but_its_ends_are_said(tmp_path: Path) -> None:
    events = Events(tmp_path / "e.jsonl")
    for done in range(1, 1001):
        events.phase("caching", done, 1000)
    counts = [line.event.done for line in read_events(tmp_path / "e.jsonl")[0] if isinstance(line.event, Phase)]
    assert counts[0] == 1 and counts[-1] == 1000 and len(counts) < 50


def test_every_kind_is_named_once() -> None:
    assert all(cls.kind == kind for kind, cls in KINDS.items())
