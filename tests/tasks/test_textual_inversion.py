"""train_textual_inversion through its task entry, in this process: numbers, files, resume, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel

from tests.tasks.conftest import Place, Train, make_pictures
from tests.tasks.test_train_network import losses, of, same_files
from trainer import config as run_config
from trainer.errors import ConfigError
from trainer.events import Sample, Start, Warning
from trainer.families.base import ModelOptions, load_family
from trainer.formats.embedding import read_embedding, save_embedding
from trainer.formats.model_facts import read_header
from trainer.methods.textual_inversion import TextualInversionMethod, TextualInversionOptions
from trainer.optim.optimizers import OptimizerOptions
from trainer.store import Sourced
from trainer.tasks import tasks

SD1 = [1.1268712, 1.0977494, 1.0858585]
SDXL = [1.1782123, 1.1111572, 1.1010096]
"""The losses of three steps on the CPU in float32."""

FLAGS = ("--dataset_config", "d.toml", "--token_string", "zz-Foo", "--num_vectors_per_token", "2")
TASK = "train_textual_inversion"


@pytest.fixture
def captioned(place: Place) -> Place:
    """The place with the word in the captions of all training pictures but one."""
    make_pictures(place.path / "pics", 4, caption="a ZZ-foo thing")
    return place


def build(model: Path, *, init_word: str | None = "cat", count: int = 2, weights: Path | None = None) -> tuple:  # type: ignore[type-arg]
    """A family and the method over it."""
    family = load_family(ModelOptions(pretrained_model_name_or_path=str(model)), dtype=torch.float32, device="cpu")
    for part in family.text_encoders[1].modules() if len(family.text_encoders) > 1 else ():
        if isinstance(part, CLIPTextModel):
            part.eos_token_id = 2  # as the real model's config has it, which makes the highest id the end
    options = TextualInversionOptions(
        token_string="zz-Foo", init_word=init_word, num_vectors_per_token=count, weights=weights
    )
    return family, TextualInversionMethod(family, options, OptimizerOptions(), seed=3)


def test_a_word_of_stable_diffusion_1_trains_resumes_and_draws_in_diffusers(captioned: Place, train: Train) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    place = captioned
    (place.path / "p.txt").write_text("a zz-foo thing --w 64 --h 64 --d 1 --s 3\n")
    flags = (*FLAGS, "--init_word", "cat", "--save_every_n_steps", "2", "--save_state", "--gradient_checkpointing")
    flags += ("--sample_prompts", "p.txt", "--sample_every_n_steps", "100", "--learning_rate", "0.5")
    events = train(TASK, *flags)
    assert losses(events) == pytest.approx(SD1, rel=1e-4)
    assert of(Start, events)[0].trainable_parameters == {"textencoder": 2 * 32}
    said = [warning.message for warning in of(Warning, events)]
    assert len(said) == 2
    assert said[0].startswith(f"1 pictures have captions without zz-Foo, and teach it nothing: {Path('pics/p4.png')}. ")
    assert said[1].startswith("3 regularisation pictures have captions without zz-Foo")
    rest = train(TASK, *flags, "--resume", "outputs/a-step00000002-state", name="b")
    assert [x.hex() for x in losses(rest)] == [x.hex() for x in losses(events)[2:]]
    outputs = place.path / "outputs"
    assert same_files(outputs / "a.safetensors", outputs / "b.safetensors")
    assert load_file(outputs / "a.safetensors")["emb_params"].shape == (2, 32)
    metadata = read_header(outputs / "a.safetensors").metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert metadata["modelspec.trigger_phrase"] == "zz-Foo" and metadata["ss_steps"] == "3"

    pipe = StableDiffusionPipeline.from_pretrained(place.model, safety_checker=None, local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)

    def drawn() -> np.ndarray:
        picture: np.ndarray = pipe(
            "a zz-foo thing", width=64, height=64, num_inference_steps=3, guidance_scale=7.5, output_type="np",
            generator=torch.Generator().manual_seed(1),
        ).images[0]  # fmt: skip
        return picture

    with Image.open(place.path / "runs" / "a" / of(Sample, events)[0].path) as picture:
        ours = np.asarray(picture, dtype=np.float64) / 255
    assert float(np.abs(drawn() - ours).max()) > 0.01  # without the word it is another picture
    pipe.load_textual_inversion(outputs / "a.safetensors", token="zz-foo")
    assert float(np.abs(drawn() - ours).max()) <= 1e-3 + 0.5 / 255


def test_a_word_of_stable_diffusion_xl_has_vectors_for_both_encoders(
    place: Place, train: Train, tiny_sdxl_folder: Path
) -> None:
    flags = (*FLAGS, "--pretrained_model_name_or_path", str(tiny_sdxl_folder), "--use_object_template")
    flags += ("--save_model_as", "pt", "--save_state", "--save_every_n_steps", "2", "--learning_rate", "0.5")
    events = train(TASK, *flags)
    assert losses(events) == pytest.approx(SDXL, rel=1e-4)
    assert of(Start, events)[0].trainable_parameters == {"textencoder": 2 * 32, "textencoder_2": 2 * 48}
    rest = train(TASK, *flags, "--resume", "outputs/a-step00000002-state", name="b")
    assert [x.hex() for x in losses(rest)] == [x.hex() for x in losses(events)[2:]]
    outputs = place.path / "outputs"
    ends = [torch.load(outputs / name, weights_only=True) for name in ("a-step00000002.pt", "a.pt", "b.pt")]
    assert {key: tuple(tensor.shape) for key, tensor in ends[1].items()} == {"clip_l": (2, 32), "clip_g": (2, 48)}
    for key in ("clip_l", "clip_g"):
        assert torch.equal(ends[1][key], ends[2][key]) and not torch.equal(ends[0][key], ends[1][key])


def test_only_the_vectors_take_a_gradient_and_the_last_state_is_the_ends(tiny_sdxl_folder: Path) -> None:
    family, method = build(tiny_sdxl_folder)
    trained = [p for module in family.components().values() for p in module.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for group in method.groups() for p in group.parameters}
    first = family.encode_prompts(method.text_encoders, ["a zz-foo thing", "a cat cat thing", "my zz-foods"])
    assert first.pooled_BD is not None
    assert torch.equal(first.states_BLD[0], first.states_BLD[1]) and torch.equal(first.pooled_BD[0], first.pooled_BD[1])
    first.states_BLD[2].sum().backward()
    assert all(not p.grad.any() for p in trained if p.grad is not None)
    (family.encode_prompts(method.text_encoders, ["(ZZ-FOO:1.2)"]).states_BLD ** 2).sum().backward()
    assert all(p.grad.abs().sum(dim=1).min() > 0 for p in trained)


def test_where_the_word_begins(tmp_path: Path, tiny_folder: Path) -> None:
    family, method = build(tiny_folder, init_word="red cat", count=3)
    table = family.text_encoders[0].get_input_embeddings().table.weight
    ids = family.tokenizers[0]("red cat red", add_special_tokens=False).input_ids
    assert torch.equal(method.state_dict()["emb_params"], table[ids])
    assert method.notes == ("init_word red cat has 2 tokens for 3 vectors: they are used over and over",)
    assert build(tiny_folder, init_word="cat", count=3)[1].notes == ()

    vectors = {"emb_params": torch.randn(2, 32)}
    for name in ("mine.safetensors", "mine.pt"):
        save_embedding(vectors, tmp_path / name, precision="float", metadata={})
        _, method = build(tiny_folder, init_word=None, weights=tmp_path / name)
        assert torch.equal(method.state_dict()["emb_params"], vectors["emb_params"])
    torch.save({"string_to_param": {"*": vectors["emb_params"][0]}, "name": "mine"}, tmp_path / "old.pt")
    assert torch.equal(read_embedding(tmp_path / "old.pt", ["emb_params"])["emb_params"], vectors["emb_params"][:1])
    with pytest.raises(Exception, match="has 1 vectors of 32 numbers; the word has 2 of 32"):
        build(tiny_folder, init_word=None, weights=tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"token_string": "sks"}, "token_string"),
        ({"token_string": "my cat"}, "token_string"),
        ({"token_string": "(cat-7)", "weighted_captions": True}, "token_string"),
        ({"use_object_template": True, "use_style_template": True}, "use_style_template"),
        ({"cache_text_encoder_outputs": True}, "cache_text_encoder_outputs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"weights": "nowhere.pt"}, "weights"),
        ({"save_model_as": "ckpt"}, "save_model_as"),
        ({"network_dim": 4}, "network_dim"),
    ],
)
def test_what_the_task_refuses(values: dict[str, object], option: str) -> None:
    given = {"pretrained_model_name_or_path": "model", "dataset_config": "d.toml", "token_string": "zz-Foo", **values}
    with pytest.raises(ConfigError) as caught:
        run_config.build(tasks()[TASK].config, {name: Sourced(value, "test") for name, value in given.items()})
    assert [p.option for p in caught.value.problems] == [option]
