"""train_network end to end with a tiny real model: files, resume, workers, processes, stop, errors."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.tasks.conftest import ENV, Place
from trainer.events import Checkpoint, Error, Event, Finished, Sample, Start, Step, Stopped, Validation, Warning

pytestmark = pytest.mark.slow


def losses(events: Sequence[Event]) -> list[float]:
    return [e.loss for e in events if isinstance(e, Step)]


T = TypeVar("T")


def of(kind: type[T], events: Sequence[Any]) -> list[T]:
    return [e for e in events if isinstance(e, kind)]


def same_files(a: Path, b: Path) -> bool:
    one, two = load_file(a), load_file(b)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_run_leaves_everything_it_promises(place: Place) -> None:
    events = place.train(
        "--sample_at_first", "--sample_every_n_steps", "5", "--save_every_n_steps", "4", "--save_state",
        "--min_snr_gamma", "5", "--noise_offset", "0.05", "--lr_scheduler", "cosine", "--lr_warmup_steps", "2",
        "--training_comment", "a comment",
    )  # fmt: skip
    (start,), steps = of(Start, events), of(Step, events)
    assert [s.step for s in steps] == list(range(1, start.total_steps + 1)) == list(range(1, 12))
    assert steps[0].lr["unet"] == 0.5e-3 and set(steps[0].lr) == {"unet", "textencoder"}
    assert isinstance(events[-1], Finished) and Path(events[-1].path) == place.path / "outputs" / "a.safetensors"

    outputs = {p.name for p in (place.path / "outputs").iterdir() if not p.name.startswith(".")}
    assert outputs == {
        "a.safetensors", "a-state", "a-step00000004.safetensors", "a-step00000004-state",
        "a-step00000008.safetensors", "a-step00000008-state",
    }  # fmt: skip
    run = place.path / "runs" / "a"
    listed = json.loads((run / "files.json").read_text())
    assert {Path(f["path"]).name for f in listed} == outputs
    assert all(len(f["sha256"]) == 64 for f in listed if f["what"] == "model")
    assert [(s.step, s.index) for s in of(Sample, events)] == [(n, i) for n in (0, 5, 10, 11) for i in (0, 1)]
    with Image.open(run / of(Sample, events)[0].path) as picture:
        assert picture.size == (64, 64) and "a sks thing" in picture.info["parameters"]

    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0] or environment["packages"]["torch"]
    assert len(environment["model_fingerprint"]) == 64 and environment["device"] == "cpu"
    sources = json.loads((run / "sources.json").read_text())
    assert sources["seed"] == "--seed" and sources["network_dim"] == "default"
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads((run / "status.json").read_text())["state"] == "finished"

    with safe_open(place.path / "outputs" / "a.safetensors", "pt") as file:
        metadata = file.metadata()
        keys = set(file.keys())
    assert metadata["ss_network_module"] == "networks.lora" and metadata["ss_training_comment"] == "a comment"
    assert metadata["ss_steps"] == "11" and metadata["ss_min_snr_gamma"] == "5.0"
    assert metadata["ss_num_train_images"] == "10" and metadata["ss_num_reg_images"] == "10"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert any(k.startswith("lora_unet_") for k in keys) and any(k.startswith("lora_te_text_model_") for k in keys)


@pytest.mark.parametrize("cut", ["3", "7"])
def test_a_resumed_run_is_bit_identical(new_place: Callable[[str], Place], cut: str) -> None:
    """Dropouts, accumulation, flips and shuffled captions on; cut in mid-epoch; sampling draws from nothing."""
    flags = ("--network_dropout", "0.1", "--rank_dropout", "0.1", "--module_dropout", "0.1", "--max_train_epochs", "2")
    flags += ("--gradient_accumulation_steps", "2", "--lr_scheduler", "cosine", "--cache_latents")
    place = new_place("whole")
    whole = place.train(*flags, "--save_every_n_steps", cut, "--save_state")
    state = place.path / "outputs" / f"a-step{int(cut):08d}-state"
    rest = place.train(
        *flags, "--resume", str(state), "--sample_every_n_steps", "2", "--max_data_loader_n_workers", "1", run="b"
    )  # fmt: skip
    assert of(Start, rest)[0].first_step == int(cut)
    assert [x.hex() for x in losses(rest)] == [x.hex() for x in losses(whole)[int(cut) :]]
    outputs = place.path / "outputs"
    assert same_files(outputs / "a-state" / "trained.safetensors", outputs / "b-state" / "trained.safetensors")
    optimizers = [torch.load(outputs / n / "optimizer.pt", weights_only=True) for n in ("a-state", "b-state")]
    one, two = (o["optimizer"]["state"] for o in optimizers)
    assert all(torch.equal(one[i][k], two[i][k]) for i in one for k in one[i])
    progress = json.loads((outputs / "b-state" / "progress.json").read_text())
    assert [Path(p).name for p in progress["parents"]] == ["a", "b"]


def test_a_schedule_free_run_goes_on_exactly(place: Place) -> None:
    """Drawing and saving show other weights in between, and must leave no trace."""
    flags = ("--optimizer_type", "AdamWScheduleFree", "--text_encoder_lr", "5e-4")
    whole = place.train(*flags, "--save_every_n_steps", "2", "--save_state", "--sample_every_n_steps", "5")
    outputs = place.path / "outputs"
    state = outputs / "a-step00000002-state"
    rest = place.train(*flags, "--resume", str(state), run="b")
    assert [x.hex() for x in losses(rest)] == [x.hex() for x in losses(whole)[2:]]
    assert same_files(outputs / "a-state" / "trained.safetensors", outputs / "b-state" / "trained.safetensors")
    assert same_files(outputs / "a.safetensors", outputs / "b.safetensors")
    assert not same_files(outputs / "a.safetensors", outputs / "a-state" / "trained.safetensors")
    assert "ScheduleFreeAdamW()" in (place.path / "runs" / "a" / "console.log").read_text()


def test_workers_and_the_latent_cache_change_nothing(place: Place) -> None:
    runs = {
        name: place.train(*flags, run=name)
        for name, flags in {
            "plain": (),
            "cached": ("--cache_latents",),
            "workers": ("--max_data_loader_n_workers", "2"),
        }.items()
    }
    assert losses(runs["plain"]) == losses(runs["cached"]) == losses(runs["workers"])
    outputs = place.path / "outputs"
    for name in ("cached", "workers"):
        assert same_files(outputs / "plain.safetensors", outputs / f"{name}.safetensors")


def test_two_processes_equal_one_with_twice_the_accumulation(place: Place) -> None:
    """With a validation and an average of the weights, which each process calculates."""
    dataset = (place.path / "d.toml").read_text().replace("batch_size = 2", "batch_size = 2\nvalidation_split = 0.2")
    (place.path / "d.toml").write_text(dataset)
    warmup = ("--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", "3", "--use_ema", "--ema_decay", "0.5")
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *place.argv(*warmup, run="two")]
    env = {**ENV, "ACCELERATE_USE_CPU": "true"}
    subprocess.run(argv, cwd=place.path, env=env, check=True, capture_output=True, timeout=300)
    one = place.train(*warmup, "--gradient_accumulation_steps", "2", run="one")
    rates = [step.lr["unet"] for step in of(Step, place.events("two")) if step.lr]
    assert rates[:3] == pytest.approx([rates[-1] / 3, rates[-1] * 2 / 3, rates[-1]])
    assert losses(place.events("two")) == losses(one)
    validated = [[(event.step, event.loss) for event in of(Validation, place.events(run))] for run in ("one", "two")]
    assert validated[0] == validated[1] and len(validated[0]) == 2
    assert same_files(place.path / "outputs" / "one.safetensors", place.path / "outputs" / "two.safetensors")


def test_accumulating_small_batches_is_a_large_batch(place: Place) -> None:
    """4 x 1 = 1 x 4, to rounding: with four equal pictures only the slots' noise differs, and slots are the same."""
    whole = (place.path / "pics" / "p0.png").read_bytes()
    for index in range(4):
        (place.path / "equal").mkdir(exist_ok=True)
        (place.path / "equal" / f"{index}.png").write_bytes(whole)
    for name, batch in (("large", 4), ("small", 1)):
        (place.path / "d.toml").write_text(
            f"[[datasets]]\nresolution = 64\nbatch_size = {batch}\n[[datasets.subsets]]\nimage_dir = 'equal'\n"
            "class_tokens = 'thing'\n"
        )
        flags = ("--gradient_accumulation_steps", str(4 // batch), "--max_train_epochs", "3")
        place.train(*flags, run=name)
    large, small = losses(place.events("large")), losses(place.events("small"))
    assert len(large) == 3 and small == pytest.approx(large, rel=1e-5)
    assert large[0] != large[1]


def test_the_launcher_and_its_default_configuration_decide_nothing(place: Place, tmp_path: Path) -> None:
    """`accelerate config` once wrote bf16 and dynamo into the default file; our run stays as configured."""
    home = tmp_path / "hf"
    (home / "accelerate").mkdir(parents=True)
    (home / "accelerate" / "default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nnum_processes: 1\n"
        "num_machines: 1\nuse_cpu: true\ndynamo_config:\n  dynamo_backend: INDUCTOR\n"
    )
    argv = [sys.executable, "-m", "accelerate.commands.launch", *place.argv(run="launched")]
    env = {**ENV, "HF_HOME": str(home)}
    done = subprocess.run(argv, cwd=place.path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = [w.message for w in of(Warning, place.events("launched"))]
    assert any("mixed_precision bf16; this run uses no" in s for s in said)
    plain = place.train(run="plain")
    assert losses(place.events("launched")) == losses(plain)


def test_stop_saves_and_the_run_goes_on_where_it_was(place: Place) -> None:
    flags = ("--max_train_epochs", "4", "--cache_latents")
    whole = place.train(*flags, run="whole")
    process = subprocess.Popen(
        [sys.executable, *place.argv(*flags, run="cut")], cwd=place.path, env=ENV, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(losses(place.events("cut"))) < 5:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    (place.path / "runs" / "cut" / "stop").touch()
    assert process.wait(60) == 0
    events = place.events("cut")
    stopped = events[-1]
    assert isinstance(stopped, Stopped) and stopped.step == len(losses(events)) < len(losses(whole))
    status = json.loads((place.path / "runs" / "cut" / "status.json").read_text())
    assert status["state"] == "stopped"
    rest = place.train(*flags, "--resume", stopped.state, "--output_name", "cut2", run="rest")
    assert losses(events) + losses(rest) == losses(whole)


def test_save_and_sample_when_asked(place: Place) -> None:
    process = subprocess.Popen(
        [sys.executable, *place.argv("--max_train_epochs", "4")], cwd=place.path, env=ENV, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(losses(place.events("a"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    (place.path / "runs" / "a" / "save").touch()
    (place.path / "runs" / "a" / "sample").touch()
    assert process.wait(120) == 0
    events = place.events("a")
    assert len(of(Sample, events)) == 2
    asked = [c for c in of(Checkpoint, events) if "-step" in Path(c.path).name]
    assert len(asked) == 1 and Path(asked[0].path).exists()


def test_a_killed_run_leaves_only_whole_files(place: Place) -> None:
    flags = ("--max_train_epochs", "8", "--save_every_n_steps", "1", "--save_state", "--save_last_n_steps", "2")
    process = subprocess.Popen(
        [sys.executable, *place.argv(*flags)], cwd=place.path, env=ENV, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(losses(place.events("a"))) < 6:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    outputs = place.path / "outputs"
    from trainer.hooks.resume import load

    states = sorted(outputs.glob("a-step*-state"))
    assert states
    for state in states:
        load(state)
    for model in outputs.glob("a-step*.safetensors"):
        load_file(model)
    rest = place.train(*flags, "--resume", str(states[-1]), run="b")
    assert isinstance(rest[-1], Finished)


def test_a_resumed_run_writes_again_what_was_saved_past_its_resume_point(place: Place) -> None:
    """As after a crash: the models of the steps to be done again stand there, the finished one does not."""
    flags = ("--save_every_n_steps", "4", "--save_state", "--output_name", "a")
    place.train(*flags)
    outputs = place.path / "outputs"
    finished, later = outputs / "a.safetensors", outputs / "a-step00000008.safetensors"
    before = load_file(later)
    finished.unlink()
    shutil.rmtree(outputs / "a-state")
    resume = ("--resume", str(outputs / "a-step00000004-state"))
    events = place.train(*flags, *resume, run="b")
    assert isinstance(events[-1], Finished) and Path(events[-1].path) == finished
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(later).items())
    # a finished model is somebody's result, whoever made it
    events = place.train(*flags, *resume, run="c", code=2)
    assert isinstance(events[-1], Error) and f"{finished} exists already" in events[-1].message


def test_old_saves_are_pruned_and_a_card_is_all_that_is_told(place: Place) -> None:
    card = ("--metadata_title", "House", "--metadata_author", "me", "--no_metadata")
    place.train("--save_every_n_steps", "2", "--save_last_n_steps", "4", "--save_state", *card)
    with safe_open(place.path / "outputs" / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["modelspec.title"], metadata["modelspec.author"]) == ("House", "me")
    assert "modelspec.license" not in metadata and metadata["ss_network_dim"] == "4"
    assert not {"ss_learning_rate", "ss_datasets", "ss_tag_frequency", "ss_sd_model_name"} & set(metadata)
    names = sorted(p.name for p in (place.path / "outputs").glob("a-step*.safetensors"))
    assert names == [f"a-step{step:08}.safetensors" for step in (6, 8, 10)]
    listed = {Path(f["path"]).name for f in json.loads((place.path / "runs" / "a" / "files.json").read_text())}
    assert "a-step00000002.safetensors" not in listed and "a-step00000002-state" not in listed


def test_another_runs_file_is_never_overwritten(place: Place) -> None:
    place.train(run="a")
    before = (place.path / "outputs" / "a.safetensors").read_bytes()
    events = place.train("--output_name", "a", run="a2", code=2)
    assert isinstance(events[-1], Error) and "exists already" in events[-1].message
    assert (place.path / "outputs" / "a.safetensors").read_bytes() == before
    events = place.train("--output_name", "a", "--overwrite", run="a3")
    assert isinstance(events[-1], Finished)


def test_a_runs_own_config_starts_a_new_run_and_never_writes_into_the_old_one(place: Place) -> None:
    place.train()
    before = (place.path / "runs" / "a" / "events.jsonl").read_bytes()
    argv = [sys.executable, "-m", "trainer", "train_network", "--config_file", "runs/a/config.toml"]
    more = ["--resume", "outputs/a-state", "--max_train_epochs", "2", "--output_name", "b"]
    done = subprocess.run([*argv, *more], cwd=place.path, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (place.path / "outputs" / "b.safetensors").exists() and len(list((place.path / "runs").iterdir())) == 2
    refused = subprocess.run(
        [*argv, *more, "--run_dir", "runs/a"], cwd=place.path, env=ENV, capture_output=True, text=True, timeout=300
    )
    assert refused.returncode == 2 and "holds a run already" in refused.stderr
    assert (place.path / "runs" / "a" / "events.jsonl").read_bytes() == before


def test_a_resumed_run_with_other_data_is_refused(place: Place) -> None:
    place.train()
    (place.path / "pics" / "p0.txt").write_text("something else")
    events = place.train("--resume", "outputs/a-state", "--learning_rate", "5e-4", run="b", code=2)
    assert isinstance(events[-1], Error)
    assert {p["option"] for p in events[-1].problems} >= {"dataset", "learning_rate", "resume"}


def test_a_damaged_resume_point_is_refused_by_name(place: Place) -> None:
    place.train()
    damaged = place.path / "outputs" / "a-state" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    events = place.train("--resume", "outputs/a-state", run="b", code=2)
    assert isinstance(events[-1], Error) and "optimizer.pt" in events[-1].message


def test_user_errors_are_sentences_before_anything_loads(place: Place) -> None:
    (place.path / "page.safetensors").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (place.path / "blocked").write_text("")
    began = time.monotonic()
    events = place.train(
        "--pretrained_model_name_or_path", "page.safetensors", "--dataset_config", "nowhere.toml",
        "--output_dir", "blocked/x", "--mixed_precision", "fp16", code=2,
    )  # fmt: skip
    error = events[-1]
    assert isinstance(error, Error)
    said = {p["option"]: p for p in error.problems}
    assert "HTML" in said["pretrained_model_name_or_path"]["message"]
    assert {"dataset_config", "output_dir", "mixed_precision"} <= set(said)
    assert said["mixed_precision"]["source"] == "--mixed_precision"
    assert time.monotonic() - began < 30
    assert not (place.path / "outputs").exists()


def test_bad_pictures_are_all_named_before_the_model_loads(place: Place) -> None:
    (place.path / "pics" / "empty.png").touch()
    whole = (place.path / "pics" / "p0.png").read_bytes()
    (place.path / "pics" / "cut.png").write_bytes(whole[: len(whole) // 2])
    events = place.train(code=2)
    assert isinstance(events[-1], Error)
    assert "empty.png" in events[-1].message and "cut.png" in events[-1].message
    assert not of(Start, events)


def test_a_full_disk_is_said_before_training(place: Place) -> None:
    from trainer import host
    from trainer.tasks.schedule import Schedule, disk_problem

    config = _config(place)
    schedule = Schedule(100, 10, {i: 10 * i for i in range(1, 11)})
    free = host.free_bytes(place.path)
    assert disk_problem(config.saving, schedule, 0, num_saved=250, num_trained=250) is None
    for saved, trained in ((free // 4, 0), (0, free // 12)):
        problem = disk_problem(config.saving, schedule, 0, num_saved=saved + 4, num_trained=trained + 1)
        assert problem and problem.option == "output_dir" and "MB are free" in problem.message


def _config(place: Place) -> Any:
    from trainer import config as run_config
    from trainer.store import Sourced
    from trainer.tasks.train_network import TrainNetworkConfig

    values = {"pretrained_model_name_or_path": str(place.model), "dataset_config": str(place.path / "d.toml")}
    values["output_dir"] = str(place.path / "outputs")
    return run_config.build(TrainNetworkConfig, {k: Sourced(v, "test") for k, v in values.items()})


def test_a_loss_that_is_no_number_stops_before_the_update(place: Place) -> None:
    events = place.train("--learning_rate", "1e30", "--max_grad_norm", "0", "--save_every_n_steps", "1", code=2)
    assert isinstance(events[-1], Error) and "the loss is" in events[-1].message
    assert not (place.path / "outputs" / "a.safetensors").exists()


def test_gradient_checkpointing_and_bf16_train(place: Place) -> None:
    plain = place.train(run="plain")
    checkpointed = place.train("--gradient_checkpointing", run="checkpointed")
    assert losses(checkpointed) == pytest.approx(losses(plain), rel=1e-5)
    bf16 = place.train("--mixed_precision", "bf16", "--save_precision", "fp16", run="bf16")
    assert losses(bf16) == pytest.approx(losses(plain), rel=0.1)
    assert all(t.dtype == torch.float16 for t in load_file(place.path / "outputs" / "bf16.safetensors").values())


def test_a_zero_rate_trains_only_the_other(place: Place) -> None:
    events = place.train("--text_encoder_lr", "0")
    assert set(of(Start, events)[0].trainable_parameters) == {"unet"}
    assert all(k.startswith("lora_unet_") for k in load_file(place.path / "outputs" / "a.safetensors"))


def test_starting_from_a_lora(place: Place) -> None:
    place.train()
    begin = ("--network_weights", "outputs/a.safetensors", "--dim_from_weights")
    events = place.train(*begin, "--save_every_n_steps", "6", "--save_state", run="b")
    assert isinstance(events[-1], Finished)
    rest = place.train(*begin, "--resume", "outputs/b-step00000006-state", run="c")  # ranks from the file, no weights
    assert losses(rest) == losses(events)[6:]
    assert same_files(place.path / "outputs" / "b.safetensors", place.path / "outputs" / "c.safetensors")


def test_single_files_train_like_folders(place: Place) -> None:
    """Bit-equal losses from the model's own single file, made without network."""
    from trainer.families.base import ModelOptions, load_family

    family: Any = load_family(
        ModelOptions(pretrained_model_name_or_path=str(place.model)), dtype=torch.float32, device="cpu"
    )
    family.save_single_file(place.path / "single.safetensors", precision="float", metadata={})
    folder = place.train(run="folder")
    single = place.train("--pretrained_model_name_or_path", "single.safetensors", run="single")
    assert losses(folder) == losses(single)


def test_diffusers_draws_the_trainers_own_sample(place: Place) -> None:
    """The saved LoRA, loaded as users do, gives the last sample picture; every key is used."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    events = place.train("--sample_every_n_epochs", "1", "--network_alpha", "4", "--learning_rate", "1e-2")
    sample = of(Sample, events)[-2]
    pipe = StableDiffusionPipeline.from_pretrained(place.model, safety_checker=None, local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        picture = pipe(
            "a sks thing", width=64, height=64, num_inference_steps=3, guidance_scale=7.5, generator=generator,
            output_type="np",
        )  # fmt: skip
        return np.asarray(picture.images[0])

    bare = draw()
    pipe.load_lora_weights(place.path / "outputs" / "a.safetensors")
    weights = load_file(place.path / "outputs" / "a.safetensors")
    adapted = {
        n for m in (pipe.unet, pipe.text_encoder) for n, _ in m.named_modules() if n.endswith("lora_A.default_0")
    }
    assert len(adapted) == len([k for k in weights if k.endswith("lora_down.weight")])
    drawn = draw()
    with Image.open(place.path / "runs" / "a" / sample.path) as picture:
        ours = np.asarray(picture, dtype=np.float64) / 255
    assert float(np.abs(drawn - ours).max()) <= 1e-3 + 0.5 / 255, "PNG holds 8 bits: half a step of it is rounding"
    assert float(np.abs(bare - drawn).max()) > 0.02, "the LoRA must matter for this test to mean anything"


def test_the_old_folder_names_train(place: Place) -> None:
    (place.path / "train" / "3_sks thing").mkdir(parents=True)
    (place.path / "reg_parent" / "1_thing").mkdir(parents=True)
    for source, target in (("pics", "train/3_sks thing"), ("reg", "reg_parent/1_thing")):
        for file in (place.path / source).glob("*.png"):
            (place.path / target / file.name).write_bytes(file.read_bytes())
    argv = [
        sys.executable, "-m", "trainer", "train_network", "--pretrained_model_name_or_path", str(place.model),
        "--train_data_dir", "train", "--reg_data_dir", "reg_parent", "--resolution", "64,64", "--output_dir", "out",
        "--output_name", "old", "--max_train_steps", "2", "--run_dir", "runs/old", "--network_module", "networks.lora",
        "--prior_loss_weight", "0.5",
    ]  # fmt: skip
    subprocess.run(argv, cwd=place.path, env=ENV, check=True, capture_output=True, timeout=200)
    (start,) = of(Start, place.events("old"))
    assert start.num_pictures == 8 and (place.path / "out" / "old.safetensors").exists()


def test_a_mistake_of_ours_is_an_event_with_its_trace_in_the_log(place: Place) -> None:
    """A tensor file that is whole but senseless: the outermost frame says it, and the log has the trace."""
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 4)}, place.path / "bad.safetensors")
    events = place.train("--network_weights", "bad.safetensors", code=2)
    assert isinstance(events[-1], Error) and "bad.safetensors" in events[-1].message


def test_two_runs_into_one_folder_do_not_meet(place: Place) -> None:
    first = subprocess.Popen(
        [sys.executable, *place.argv("--max_train_epochs", "20", run="first")],
        cwd=place.path, env=ENV, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not losses(place.events("first")):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    events = place.train(run="second", code=2)
    assert isinstance(events[-1], Error) and "first" in events[-1].message
    (place.path / "runs" / "first" / "stop").touch()
    assert first.wait(60) == 0


def test_spawn_is_enough(place: Place) -> None:
    """What Windows does: nothing may rely on fork. Two workers under the spawn start method, set globally."""
    code = "import multiprocessing, sys\n"
    code += "if __name__ == '__main__':\n    multiprocessing.set_start_method('spawn', force=True)\n"
    code += "    from trainer.__main__ import main\n    raise SystemExit(main())\n"
    script = place.path / "spawned.py"
    script.write_text(code)
    argv = [sys.executable, str(script), *place.argv("--max_data_loader_n_workers", "2", run="spawned")[2:]]
    done = subprocess.run(argv, cwd=place.path, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plain = place.train(run="plain")
    assert losses(place.events("spawned")) == losses(plain)
