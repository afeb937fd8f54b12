"""LoRA: names and shapes of sd-scripts' file, files that diffusers reads entirely, exact restoring."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from trainer.adapters.base import AdapterOptions
from trainer.adapters.lora import Lora
from trainer.errors import ModelError
from trainer.families.base import ModelOptions, SampleRequest, load_family
from trainer.families.sd1 import StableDiffusion1
from trainer.formats.kohya import save_lora
from trainer.formats.model_facts import read_header

REFERENCE = Path("tests/vectors/sdscripts_lora_dim4.safetensors")


def adapted(folder: Path, *, seed: int = 1, backwards: bool = False, **options: Any) -> tuple[StableDiffusion1, Lora]:
    built = ModelOptions(pretrained_model_name_or_path=str(folder))
    family = load_family(built, dtype=torch.float32, device="cpu")
    assert isinstance(family, StableDiffusion1)
    lora = Lora(AdapterOptions(**options), seed=seed)
    targets = family.adapter_targets()
    for target in reversed(targets) if backwards else targets:
        lora.inject(target)
    return family, lora


def randomise(lora: Lora) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = {
        key: tensor if key.endswith("alpha") else torch.randn(tensor.shape, generator=generator) * 0.2
        for key, tensor in lora.state_dict().items()
    }
    lora.load_state_dict(tensors)


def answer(family: StableDiffusion1) -> torch.Tensor:
    conditioning = family.encode_prompts(family.text_encoders, ["a cat"])
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return family.predict(family.denoiser, noisy, torch.tensor([500]), conditioning).detach()


def test_names_shapes_and_alphas_are_sd_scripts(tiny_folder: Path, tmp_path: Path) -> None:
    _, lora = adapted(tiny_folder, network_dim=4, network_alpha=2.0)
    path = save_lora(lora.state_dict(), tmp_path / "l.safetensors", precision="float", metadata={})
    ours, theirs = read_header(path).tensors, read_header(REFERENCE).tensors
    assert set(ours) == {key for key in theirs if "layers_3" not in key}  # the tiny encoder has three layers
    for key, info in ours.items():
        # same rank, order and number of sides; the widths are those of another small model
        assert (info.dtype, len(info.shape)) == (theirs[key].dtype, len(theirs[key].shape)), key
        sides = info.shape[:1] if key.endswith("down.weight") else info.shape[1:2] if key.endswith("up.weight") else ()
        assert all(side == 4 for side in sides), key
    alphas = {float(value) for key, value in load_file(path).items() if key.endswith(".alpha")}
    assert alphas == {2.0}


def test_a_real_sd_scripts_file_goes_in_and_out(tmp_path: Path) -> None:
    """On a U-Net of the sizes that the reference was trained with."""
    from trainer.families._stable_diffusion import UNET_BLOCKS, paths_below
    from trainer.formats.kohya import AdapterTarget

    unet = UNet2DConditionModel(block_out_channels=(32, 64, 128, 128), cross_attention_dim=64, attention_head_dim=8)
    paths = paths_below(unet, UNET_BLOCKS)
    lora = Lora(AdapterOptions(network_dim=4, network_alpha=2.0), seed=0)
    lora.inject(AdapterTarget.build("denoiser", prefix="lora_unet", module=unet, paths=paths))
    theirs = {key: tensor for key, tensor in load_file(REFERENCE).items() if key.startswith("lora_unet")}
    lora.load_state_dict(theirs)
    ours = lora.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_start_values(tiny_folder: Path) -> None:
    family, lora = adapted(tiny_folder)
    tensors = lora.state_dict()
    assert all(not tensor.any() for key, tensor in tensors.items() if "lora_up" in key)
    down = tensors["lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2.lora_down.weight"]
    bound = 1 / math.sqrt(down.shape[1])  # kaiming uniform with a = sqrt(5)
    assert down.abs().max() <= bound
    assert down.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    plain = load_family(ModelOptions(pretrained_model_name_or_path=str(tiny_folder)), dtype=torch.float32, device="cpu")
    assert isinstance(plain, StableDiffusion1)
    assert torch.equal(answer(family), answer(plain))


def test_start_values_depend_on_seed_and_name_only(tiny_folder: Path) -> None:
    torch.manual_seed(1)
    first = adapted(tiny_folder)[1].state_dict()
    torch.manual_seed(2)
    second = adapted(tiny_folder, backwards=True)[1].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = adapted(tiny_folder, seed=2)[1].state_dict()
    assert not any(torch.equal(first[key], other[key]) for key in first if "lora_down" in key)


def test_only_the_adapter_trains(tiny_folder: Path) -> None:
    family, lora = adapted(tiny_folder)
    for name, module in family.components().items():
        trained = {id(p) for p in module.parameters() if p.requires_grad}
        assert trained == {id(p) for p in lora.parameters(name)}
        assert all(p.dtype == torch.float32 for p in lora.parameters(name))
    assert len(lora.parameters("denoiser")) == 2 * 192


def test_diffusers_uses_every_key(tiny_folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    family, lora = adapted(tiny_folder, network_dim=4, network_alpha=2.0)
    randomise(lora)
    path = save_lora(lora.state_dict(), tmp_path / "l.safetensors", precision="float", metadata={"ss_x": "1"})
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None, requires_safety_checker=False)
    pipeline.load_lora_weights(path)
    loaded = {
        component: sum(1 for n, _ in module.named_parameters() if ".lora_A." in n)
        for component, module in (("unet", pipeline.unet), ("te", pipeline.text_encoder))
    }
    assert loaded == {"unet": 192, "te": 18}
    assert 3 * sum(loaded.values()) == len(lora.state_dict())
    theirs = copy.copy(family)
    theirs.denoiser, theirs.text_encoders = pipeline.unet, (pipeline.text_encoder,)
    mine, plain = answer(family), answer(adapted(tiny_folder)[0])
    assert torch.allclose(mine, answer(theirs), atol=1e-5)
    assert (mine - plain).abs().max() > 0.05, "the adapter does something"


def test_samples_equal_what_diffusers_draws_with_the_file(tiny_folder: Path, tmp_path: Path) -> None:
    import numpy as np
    from diffusers import EulerDiscreteScheduler

    family, lora = adapted(tiny_folder, network_dim=2, network_alpha=None)
    randomise(lora)
    path = save_lora(lora.state_dict(), tmp_path / "l.safetensors", precision="float", metadata={})
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None, requires_safety_checker=False)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.load_lora_weights(path)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a cat", width=64, height=64, num_inference_steps=4, generator=torch.Generator().manual_seed(7)
    ).images[0]
    request = SampleRequest("a cat", width=64, height=64, steps=4, seed=7, sampler="euler")
    ours = family.sample(family.denoiser, family.text_encoders, request)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_state_comes_back_exactly(tiny_folder: Path) -> None:
    family, lora = adapted(tiny_folder)
    randomise(lora)
    kept = lora.state_dict()
    expected = answer(family)
    with torch.no_grad():
        for parameter in lora.parameters("denoiser"):
            parameter.zero_()
    assert all(tensor.any() for tensor in kept.values()), "the copy has memory of its own"
    lora.load_state_dict(kept)
    assert torch.equal(answer(family), expected)


def test_foreign_state_is_refused(tiny_folder: Path) -> None:
    _, lora = adapted(tiny_folder)
    state = lora.state_dict()
    with pytest.raises(ModelError, match="another network: 1 names"):
        lora.load_state_dict({key: state[key] for key in list(state)[1:]})
    with pytest.raises(ModelError, match=r"is \[8, "):
        lora.load_state_dict(adapted(tiny_folder, network_dim=8)[1].state_dict())
    with pytest.raises(ModelError, match="alpha is 3"):
        lora.load_state_dict(adapted(tiny_folder, network_alpha=3.0)[1].state_dict())


def test_start_from_a_file_keeps_its_strength(tiny_folder: Path, tmp_path: Path) -> None:
    family, lora = adapted(tiny_folder, network_dim=4, network_alpha=2.0)
    randomise(lora)
    tensors = lora.state_dict()
    expected = answer(family)
    save_file(tensors, tmp_path / "a.safetensors")
    again, other = adapted(tiny_folder, network_dim=4, network_alpha=1.0)
    other.start_from(tmp_path / "a.safetensors")
    assert torch.allclose(answer(again), expected, atol=1e-5)
    # without alphas the strength is 1: as if alpha were the rank
    save_file({k: t for k, t in tensors.items() if "alpha" not in k}, tmp_path / "b.safetensors")
    full, lora_full = adapted(tiny_folder, network_dim=4, network_alpha=4.0)
    lora_full.load_state_dict({k: torch.tensor(4.0) if "alpha" in k else t for k, t in tensors.items()})
    expected = answer(full)
    other.start_from(tmp_path / "b.safetensors")
    assert torch.allclose(answer(again), expected, atol=1e-5)


def test_start_from_a_file_that_does_not_fit(tiny_folder: Path, tmp_path: Path) -> None:
    _, lora = adapted(tiny_folder, network_dim=8)
    with pytest.raises(ModelError, match="changes 6 layers that are not trained here"):
        lora.start_from(REFERENCE)
    save_file(adapted(tiny_folder)[1].state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="rank 4 .*network_dim is 8. Set network_dim to 4"):
        lora.start_from(tmp_path / "a.safetensors")
    save_file({"x.lora_down.weight": torch.ones(1), "x.lora_up.weight": torch.ones(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="fits no layer"):
        lora.start_from(tmp_path / "b.safetensors")
    kept = {key: tensor for key, tensor in load_file(REFERENCE).items() if "layers_3" not in key}
    save_file(kept, tmp_path / "c.safetensors")
    with pytest.raises(ModelError, match="made for another model"):
        adapted(tiny_folder)[1].start_from(tmp_path / "c.safetensors")


def test_dropouts_act_in_training_only(tiny_folder: Path) -> None:
    family, lora = adapted(tiny_folder, network_dropout=0.5, network_args=["rank_dropout=0.5"], module_dropout=0.5)
    randomise(lora)
    calm = answer(family)
    assert torch.equal(calm, answer(family))
    family.denoiser.train()
    torch.manual_seed(0)
    first = answer(family)
    assert not torch.equal(first, answer(family))
    torch.manual_seed(0)
    assert torch.equal(first, answer(family)), "the draws come from the global state"


def test_the_same_layers_as_plain_peft_and_nothing_else(tiny_folder: Path) -> None:
    """No wrapper and no hook of ours beside PEFT's, so a step costs what PEFT's costs."""
    family, _ = adapted(tiny_folder)
    layers = [part for part in family.denoiser.modules() if isinstance(part, peft.tuners.lora.LoraLayer)]
    assert len(layers) == 192
    for part in family.denoiser.modules():
        assert not part._forward_hooks and not part._forward_pre_hooks


def test_sizes_from_a_file(tiny_folder: Path, tmp_path: Path) -> None:
    """A file with another rank in every layer, and without some layers, is gone on from exactly."""
    _, lora = adapted(tiny_folder, network_dim=6, network_alpha=3.0)
    randomise(lora)
    tensors = lora.state_dict()
    names = sorted(key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha"))
    file = {}
    for number, name in enumerate(names):
        if number % 5 == 4:
            continue
        rank = 1 + number % 3
        file[f"{name}.lora_down.weight"] = tensors[f"{name}.lora_down.weight"][:rank].contiguous()
        file[f"{name}.lora_up.weight"] = tensors[f"{name}.lora_up.weight"][:, :rank].contiguous()
        file[f"{name}.alpha"] = torch.tensor(0.5 + rank)
    path = tmp_path / "uneven.safetensors"
    save_file(file, path)

    family, again = adapted(tiny_folder, network_weights=path, dim_from_weights=True)
    again.start_from(path)
    found = again.state_dict()
    assert set(found) == set(file) and all(torch.equal(found[key], file[key]) for key in file)
    again.load_state_dict(found)
    # and each layer acts with its own strength, as when its change is added to the weights
    plain = load_family(ModelOptions(pretrained_model_name_or_path=str(tiny_folder)), dtype=torch.float32, device="cpu")
    for target in plain.adapter_targets():
        for layer_path, name in target.names.items():
            if f"{name}.alpha" in file:
                weight = target.module.get_submodule(layer_path).weight
                with torch.no_grad():
                    weight += change(file, name).view_as(weight)
    assert isinstance(plain, StableDiffusion1)
    assert torch.allclose(answer(family), answer(plain), atol=1e-5)
    assert not torch.allclose(answer(family), answer(adapted(tiny_folder)[0]), atol=1e-3)


def test_sizes_from_a_file_of_other_parts(tiny_folder: Path, tmp_path: Path) -> None:
    _, lora = adapted(tiny_folder)
    only = {key: tensor for key, tensor in lora.state_dict().items() if key.startswith("lora_unet")}
    save_file(only, tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match="holds no layer of the text_encoder"):
        adapted(tiny_folder, network_weights=tmp_path / "unet.safetensors", dim_from_weights=True)


def change(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """What a layer's matrices add to it, alpha counted in."""
    down, up = tensors[f"{name}.lora_down.weight"].double(), tensors[f"{name}.lora_up.weight"].double()
    return (up.flatten(1) @ down.flatten(1)) * float(tensors[f"{name}.alpha"]) / len(down)


def test_norms_are_limited(tiny_folder: Path) -> None:
    _, lora = adapted(tiny_folder, network_dim=4, network_alpha=2.0)
    randomise(lora)
    before = lora.state_dict()
    names = [key.removesuffix(".alpha") for key in before if key.endswith(".alpha")]
    norms = {name: float(change(before, name).norm()) for name in names}
    largest = sorted(norms.values())[len(names) // 2]
    found = lora.limit_norms(largest)
    after = lora.state_dict()
    assert [norm for norm, _ in found] == pytest.approx([min(norms[name], largest) for name in names], rel=1e-5)
    assert [scaled for _, scaled in found] == [norms[name] > largest for name in names]
    for name in names:
        if norms[name] > largest:
            scale = math.sqrt(largest / norms[name])
            for side in ("down", "up"):
                key = f"{name}.lora_{side}.weight"
                assert torch.allclose(after[key], before[key] * scale, rtol=1e-5)
            assert float(change(after, name).norm()) == pytest.approx(largest, rel=1e-5)
        else:
            assert torch.equal(after[f"{name}.lora_up.weight"], before[f"{name}.lora_up.weight"])


def test_half_precision_base(tiny_folder: Path) -> None:
    built = ModelOptions(pretrained_model_name_or_path=str(tiny_folder))
    family = load_family(built, dtype=torch.bfloat16, device="cpu")
    lora = Lora(AdapterOptions(), seed=0)
    for target in family.adapter_targets():
        lora.inject(target)
    randomise(lora)
    assert all(p.dtype == torch.float32 for name in family.components() for p in lora.parameters(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conditioning = family.encode_prompts(family.text_encoders, ["a"])
        loss = family.predict(family.denoiser, torch.ones(1, 4, 8, 8), torch.tensor([5]), conditioning).mean()
    loss.backward()
    assert all(p.grad is not None for name in family.components() for p in lora.parameters(name))
    request = SampleRequest("a", width=64, height=64, steps=2, seed=1)
    assert family.sample(family.denoiser, family.text_encoders, request).size == (64, 64)
