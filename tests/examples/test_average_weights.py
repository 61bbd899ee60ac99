"""`average_weights.py`: the mean of several models, each weight once."""

import pytest
import torch

from dps_hf.inference import load


@pytest.fixture
def saved(make_model, make_text_config, tiny_processor, tmp_path):
    """Saves a random model, other than those of other seeds, and says where."""

    def save(seed: int, image_tokenizer: int = 0, tied: bool = True, **text_config) -> str:
        model = make_model(text_config=make_text_config(**text_config), tie_word_embeddings=tied)
        folder = str(tmp_path / f"{seed}")
        for part, number in ((model, seed), (model.model.image_tokenizer, image_tokenizer)):
            torch.manual_seed(number)
            for parameter in part.parameters():
                torch.nn.init.normal_(parameter.data)
        model.save_pretrained(folder)
        tiny_processor.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("tied", [True, False])
def test_each_weight_is_the_mean_of_those_of_the_models_by_their_shares(example, saved, tmp_path, tied):
    models = [saved(seed, tied=tied) for seed in (0, 1, 2)]
    average, output = example("average_weights.py"), str(tmp_path / "average")
    average.main(average.ScriptArguments(models=models, shares=[2, 0, 3], output=output))
    one, _, other, mean = (load(path)[0].state_dict() for path in (*models, output))
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert torch.equal(one["lm_head.weight"], one["model.language_model.embed_tokens.weight"]) == tied
    for name, weight in mean.items():
        torch.testing.assert_close(weight, (2 * one[name] + 3 * other[name]) / 5)
        if ".image_tokenizer." in name:  # which all of them share
            assert torch.equal(weight, one[name])


def test_shares_are_alike_if_none_are_given(example, saved, tmp_path):
    average = example("average_weights.py")
    for name, shares in (("bare", []), ("alike", [2, 2])):
        fields = {"models": [saved(0), saved(1)], "shares": shares, "output": str(tmp_path / name)}
        average.main(average.ScriptArguments(**fields))
    bare, alike = (load(tmp_path / name)[0].state_dict() for name in ("bare", "alike"))
    assert all(torch.equal(bare[name], alike[name]) for name in bare)


@pytest.mark.parametrize("tied", [True, False])
def test_codes_of_another_image_tokenizer_have_no_share(example, saved, tmp_path, tied):
    average, output = example("average_weights.py"), str(tmp_path / "average")
    models = [saved(0, tied=tied), saved(1, image_tokenizer=1, tied=tied)]
    average.main(average.ScriptArguments(models=models, output=output))
    mean, config = load(output)[0].state_dict(), load(output)[0].config
    one, other = (load(path)[0].state_dict() for path in models)
    codes = torch.zeros(config.vocab_size, dtype=torch.bool)
    codes[config.image_code_start_id : config.image_code_start_id + config.codebook_size] = True
    for name, weight in mean.items():
        halves = (one[name] + other[name]) / 2
        if ".image_tokenizer." in name:
            halves = one[name]
        elif name.endswith(("lm_head.weight", "embed_tokens.weight")):
            halves = torch.where(codes[:, None], one[name], halves)
        torch.testing.assert_close(weight, halves, msg=name)


def test_models_of_two_architectures_have_no_average(example, saved, tmp_path):
    average = example("average_weights.py")
    script = average.ScriptArguments(
        models=[saved(0), saved(1, intermediate_size=64)], output=str(tmp_path / "average")
    )
    with pytest.raises(ValueError, match=r"one architecture: \S*mlp\S* is \(.*\) in .* and \(.*64.*\) in"):
        average.main(script)


def test_another_image_tokenizer_does_not_hide_another_architecture(example, saved, tmp_path):
    average = example("average_weights.py")
    models = [saved(0, tied=False), saved(1, image_tokenizer=1)]
    with pytest.raises(ValueError, match=r"one architecture: lm_head"):
        average.main(average.ScriptArguments(models=models, output=str(tmp_path / "average")))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"models": ["a"]}, "models must be two or more; got 1"),
        ({"models": ["a", "b"], "shares": [1]}, "shares must be as many as models, 2; got 1"),
        ({"models": ["a", "b"], "shares": [1, -1]}, "shares must not be negative"),
        ({"models": ["a", "b"], "shares": [0, 0]}, "nor all 0"),
    ],
)
def test_shares_that_make_no_average_are_refused(example, fields, said):
    with pytest.raises(ValueError, match=said):
        example("average_weights.py").ScriptArguments(**fields, output="x")
