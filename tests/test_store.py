"""TOML, flags, presets and the reference page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import config as run_config
from trainer.data.config import DataOptions, read_dataset
from trainer.data.dataset import TrainingSet
from trainer.errors import ConfigError
from trainer.store import (
    Preset,
    make_parser,
    preset_json,
    read_config,
    read_flags,
    read_preset,
    render_config,
    unknown_flags,
)
from trainer.tasks import tasks
from trainer.tasks.options import page
from trainer.tasks.train_network import TrainNetworkConfig

ROOT = Path(__file__).parents[1]
SPECS = run_config.specs(TrainNetworkConfig)


def flags(*words: str) -> dict[str, object]:
    parser = make_parser(SPECS, prog="t", description="")
    return {name: sourced.value for name, sourced in read_flags(SPECS, parser.parse_args(list(words))).items()}


def test_flags_are_typed_once() -> None:
    read = flags(
        "--network_dim", "8", "--learning_rate", "1e-4", "--cache_latents", "--no-enable_bucket",
        "--optimizer_args", "weight_decay=0.1", "betas=0.9,0.99", "--optimizer_args", "eps=1e-6", "--seed", "0",
    )  # fmt: skip
    assert read == {
        "network_dim": 8, "learning_rate": 1e-4, "cache_latents": True, "enable_bucket": False,
        "optimizer_args": ["weight_decay=0.1", "betas=0.9,0.99", "eps=1e-6"], "seed": 0,
    }  # fmt: skip


def test_what_is_not_given_is_not_set() -> None:
    assert flags() == {}


def test_a_wrong_number_stays_text_for_validation() -> None:
    assert flags("--network_dim", "many") == {"network_dim": "many"}


def test_unknown_flags_suggest_the_nearest() -> None:
    (problem,) = unknown_flags(["--netwrok_dim=4"], SPECS)
    assert "Did you mean --network_dim?" in str(problem)


def test_help_is_grouped_like_the_form() -> None:
    text = make_parser(SPECS, prog="t", description="").format_help()
    order = [text.index(f"\n{title}:") for title in ("Model", "Data", "Network", "Optimizer", "Noise", "Saving")]
    assert order == sorted(order)
    assert "0.03 to 0.1 is usual" in " ".join(text.split())


def test_config_sections_are_for_people_only(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("seed = 1\n[anything]\nnetwork_dim = 8 # rank\n[more]\nnoise_offset = 0.05\n")
    read = read_config(tmp_path / "x")  # kohya's habit: the extension may be left off
    assert {k: v.value for k, v in read.items()} == {"seed": 1, "network_dim": 8, "noise_offset": 0.05}
    assert read["network_dim"].source == "x.toml line 3"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a = 'x", "not valid TOML"), (b"\xff\xfe", "not UTF-8"), (None, "no such file")],
)
def test_an_unreadable_config_is_one_sentence(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "x.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_config(file)


def test_text_survives_toml_exactly(tmp_path: Path) -> None:
    nasty = 'x; touch CANARY # $(touch CANARY) `a`\n--help "quoted" \\back ü'
    (tmp_path / "x.toml").write_text(render_config({"A": {"training_comment": nasty}}, heading="h"), encoding="utf-8")
    assert read_config(tmp_path / "x.toml")["training_comment"].value == nasty


def test_presets_round_trip_and_state_their_task(tmp_path: Path) -> None:
    preset = Preset("p", "train_network", {"network_dim": 16, "output_dir": Path("o")}, "about")
    (tmp_path / "p.json").write_text(preset_json(preset), encoding="utf-8")
    again = read_preset(tmp_path / "p.json", tasks())
    assert again.task == "train_network" and again.values == {"network_dim": 16, "output_dir": "o"}


@pytest.mark.parametrize(
    "body",
    ["{", "[]", '{"values": {}}', '{"preset_version": 99, "task": "train_network", "values": {}}',
     '{"preset_version": 1, "task": "fly", "values": {}}', '{"preset_version": 1, "values": {"seed": 1}}'],
)  # fmt: skip
def test_a_broken_preset_is_refused(tmp_path: Path, body: str) -> None:
    (tmp_path / "p.json").write_text(body)
    with pytest.raises(ConfigError):
        read_preset(tmp_path / "p.json", tasks())


def test_every_shipped_preset_loads() -> None:
    files = [p for p in ROOT.glob("presets/*/*.json") if p.parent.name != "user"]
    assert files
    for file in files:
        preset = read_preset(file, tasks())
        assert preset.task == file.parent.name
        known = set(run_config.option_names(tasks()[preset.task].config))
        assert set(preset.values) <= known, file


def test_every_shipped_config_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    files = [*(ROOT / "config_files").glob("*.toml"), ROOT / "examples" / "dataset.toml"]
    kinds = {"[[datasets]]" in file.read_text(encoding="utf-8") for file in files}
    assert kinds == {True, False}
    for file in files:
        if "[[datasets]]" in file.read_text(encoding="utf-8"):
            dataset = read_dataset(DataOptions(dataset_config=file))
            assert TrainingSet.build(dataset).summary().pictures == 12
        else:
            run_config.build(TrainNetworkConfig, read_config(file))


def test_the_reference_page_is_the_codes() -> None:
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == page(), (
        "run: python -m trainer options > docs/options.md"
    )


def test_the_command_line_says_what_is_wrong_in_one_go(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "trainer", "train_network", "--network_dim", "0", "--nois_offset", "1", "--seed", "x"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=env())
    assert done.returncode == 2
    for part in ("network_dim: should be", "Did you mean --noise_offset?", "seed: should be a whole number"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_checking_says_the_findings_as_json(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('pretrained_model_name_or_path = "nowhere"\ntrain_data_dir = "nothing"\n')
    argv = [sys.executable, "-m", "trainer", "check", "--config_file", "x.toml", "--json"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=env())
    said = json.loads(done.stdout)
    assert done.returncode == 2 and said["plan"] is None
    assert {f["option"] for f in said["findings"]} >= {"pretrained_model_name_or_path", "train_data_dir"}
    assert said["findings"][0]["source"] == "x.toml line 1"


def env() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
