"""Several processes learn as one does, whichever of them has pictures, and what they save is a plain DPS."""

import json

import pytest
import torch
from test_remote_code import FILES, load_without_the_package
from torch.distributed._composable.replicate import replicate
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from two_processes import run_on_two

from dps_hf.model.configuration_dps import AUTO_MAP
from dps_hf.model.modeling_dps import DPSForConditionalGeneration, DPSModel


KINDS = ["ddp", "fsdp2", "fsdp2 of tower layers"]
PICTURES, TEXT, DRAWING = "pictures", "text", "drawing"
# Of each step, the batches of either process, one for each step of gradient accumulation.
STEPS = [
    ([PICTURES], [TEXT]),
    ([DRAWING], [PICTURES]),
    ([TEXT], [DRAWING]),
    ([PICTURES], [PICTURES]),
    ([PICTURES, TEXT], [TEXT, TEXT]),
    ([TEXT, TEXT], [DRAWING, PICTURES]),
]


def batch(config, kind: str, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, 256, (2, 12), generator=generator)
    pictures = {}
    if kind == PICTURES:
        input_ids[:, 2 : 2 + config.num_image_tokens] = config.image_token_id
        pictures["pixel_values"] = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    elif kind == DRAWING:
        codes = torch.randint(0, config.codebook_size, (2, 4), generator=generator)
        input_ids[:, 3:7] = codes + config.image_code_start_id
    labels = input_ids.masked_fill(input_ids == config.image_token_id, -100)
    return {"input_ids": input_ids, "labels": labels, **pictures}


def load(folder, trained: tuple[str, ...]) -> DPSForConditionalGeneration:
    model = DPSForConditionalGeneration.from_pretrained(folder).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained) and "image_tokenizer" not in name)
    return model


def shard(model: DPSForConditionalGeneration, kind: str) -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    ignored = set(model.model.image_tokenizer.parameters())
    layers = [*model.model.language_model.layers]
    if kind == "fsdp2 of tower layers":
        layers += [*model.model.vision_tower.encoder.layers, model.model.connector]
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh, ignored_params=ignored)


def gradients(model: DPSForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def learn(rank: int, folder: str, kind: str, trained: tuple[str, ...]) -> list[dict]:
    """The gradients of each step, and logits of an evaluation in which only this process has pictures."""
    model = load(folder, trained)
    wrapped = DistributedDataParallel(model) if kind == "ddp" else shard(model, kind)
    found = []
    for step, batches in enumerate(STEPS):
        for number, what in enumerate(batches[rank]):
            last = number == len(batches[rank]) - 1
            if kind == "ddp":
                wrapped.require_backward_grad_sync = last
            else:
                wrapped.set_requires_gradient_sync(last)
            (wrapped(**batch(model.config, what, seed=10 * step + 2 * number + rank)).loss / 2).backward()
        found.append(gradients(model))
        model.zero_grad()
        with torch.no_grad():
            wrapped(**batch(model.config, (PICTURES, TEXT)[rank], seed=step))
    return found


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(path)
    return str(path)


EVERYTHING, NO_TOWER, DECODER = ("",), ("language_model", "connector"), ("language_model",)


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        ("ddp", EVERYTHING),
        ("fsdp2", NO_TOWER),
        ("fsdp2 of tower layers", EVERYTHING),
        *(
            pytest.param(kind, trained, marks=pytest.mark.slow)
            for kind, trained in (
                ("ddp", NO_TOWER),
                ("ddp", DECODER),
                ("fsdp2", EVERYTHING),
                ("fsdp2 of tower layers", NO_TOWER),
                ("fsdp2 of tower layers", DECODER),
            )
        ),
    ],
)
def test_two_processes_get_the_gradients_of_one_whichever_has_pictures(folder, tmp_path, kind, trained):
    found = run_on_two(learn, tmp_path, folder, kind, trained)
    model = load(folder, trained)
    for step, batches in enumerate(STEPS):
        for rank in (0, 1):
            for number, what in enumerate(batches[rank]):
                loss = model(**batch(model.config, what, seed=10 * step + 2 * number + rank)).loss
                (loss / 4).backward()
        expected = gradients(model)
        model.zero_grad()
        for of_process in found:
            assert set(expected) <= set(of_process[step])
            for name, gradient in of_process[step].items():
                right = expected.get(name, torch.zeros_like(gradient))
                torch.testing.assert_close(gradient, right, atol=1e-5, rtol=1e-3, msg=f"{name} in step {step}")


def count_tower_passes(model, monkeypatch, processes: int) -> list:
    passes = []
    model.model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: processes > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: processes)
    return passes


@pytest.mark.parametrize(("processes", "expected"), [(1, 0), (2, 1)])
def test_text_costs_a_pass_of_the_tower_only_where_several_processes_learn(
    make_model, monkeypatch, processes, expected
):
    model = make_model().train()
    passes = count_tower_passes(model, monkeypatch, processes)
    outputs = model(**batch(model.config, TEXT, 0))
    assert len(passes) == expected and outputs.image_hidden_states is None
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    model(**batch(model.config, TEXT, 0))
    assert len(passes) == expected, "nobody waits for gradients of what is not trained"


def test_inference_on_several_processes_costs_no_pass_of_the_tower(make_model, monkeypatch):
    model = make_model()
    passes = count_tower_passes(model, monkeypatch, 2)
    with torch.no_grad():
        model(**batch(model.config, TEXT, 0))
    model.generate(torch.tensor([[1, 2, 3]]), generation_mode="image", do_sample=False)
    assert not passes


def save_sharded(rank: int, folder: str, output: str, model_class: type) -> str:
    model = model_class.from_pretrained(folder)
    mesh, ignored = init_device_mesh("cpu", (2,)), set(model.base_model.image_tokenizer.parameters())
    fully_shard(model.base_model.language_model, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    model.save_pretrained(output, state_dict=weights, is_main_process=rank == 0)
    return type(model).__name__


def check_is_plain(output, name: str = "DPSForConditionalGeneration") -> None:
    config = json.loads((output / "config.json").read_text())
    assert (config["architectures"], config["auto_map"]) == ([name], AUTO_MAP)
    assert {path.name for path in output.glob("*.py")} == FILES


@pytest.mark.parametrize("model_class", [DPSForConditionalGeneration, DPSModel])
def test_what_fsdp2_saves_is_a_plain_model(folder, tmp_path, model_class):
    name, saved = model_class.__name__, tmp_path / "saved"
    assert run_on_two(save_sharded, tmp_path, folder, str(saved), model_class) == [f"FSDP{name}"] * 2
    check_is_plain(saved, name)
    weights, again = (model_class.from_pretrained(path).state_dict() for path in (folder, saved))
    assert again.keys() == weights.keys() and all(torch.equal(again[key], weights[key]) for key in weights)


@pytest.mark.slow
def test_what_fsdp2_saves_works_where_the_package_is_absent(tiny_processor, folder, tmp_path):
    run_on_two(save_sharded, tmp_path, folder, str(tmp_path / "saved"), DPSForConditionalGeneration)
    tiny_processor.save_pretrained(tmp_path / "saved")
    load_without_the_package(tmp_path / "saved", tmp_path)


def save_replicated(rank: int, folder: str, output: str) -> str:
    model = replicate(load(folder, EVERYTHING))
    model.save_pretrained(output, is_main_process=rank == 0)
    return type(model).__name__


def test_what_replicated_processes_save_is_a_plain_model(folder, tmp_path):
    names = run_on_two(save_replicated, tmp_path, folder, str(tmp_path / "saved"))
    assert names == ["DDPDPSForConditionalGeneration"] * 2
    check_is_plain(tmp_path / "saved")


def test_a_compiled_model_and_a_parametrized_one_save_as_what_they_are(make_model, tmp_path):
    torch.compile(make_model()).save_pretrained(tmp_path / "compiled")
    check_is_plain(tmp_path / "compiled")
    model = make_model()
    model.temperature = torch.nn.Parameter(torch.ones(()))
    parametrize.register_parametrization(model, "temperature", torch.nn.Softplus())
    made = type(model)
    assert made.__name__ == "ParametrizedDPSForConditionalGeneration"
    model.save_pretrained(tmp_path / "parametrized")
    assert type(model) is made
    check_is_plain(tmp_path / "parametrized")


class OwnDPS(DPSForConditionalGeneration):
    pass


def test_a_subclass_of_ones_own_keeps_its_name(tiny_config, tmp_path):
    OwnDPS(tiny_config).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["OwnDPS"]
    assert config["auto_map"]["AutoModelForMultimodalLM"] == "test_distributed.OwnDPS"
