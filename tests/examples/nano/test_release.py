"""`nano/release.py`: what is shipped is what was scored."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM

from dps_hf import NANO


def test_figures_of_other_weights_are_not_written_into_the_card(example, tmp_path):
    release, results = example("nano/release.py"), tmp_path / "results.json"
    results.write_text(json.dumps({"recipe": {"weights": "abc"}}))
    with pytest.raises(ValueError, match=r"is of weights abc, .* Measure them first"):
        release.main(release.ScriptArguments(output=NANO, results=str(results)))


@pytest.mark.parametrize("rounded", [True, False])
def test_the_image_tokenizer_is_stored_in_bfloat16_only_where_nothing_is_lost(
    example, make_model, tiny_processor, tmp_path, rounded
):
    model, release = make_model(), example("nano/release.py")
    if rounded:
        model.model.image_tokenizer.bfloat16().float()
    model.save_pretrained(tmp_path / "trained")
    tiny_processor.save_pretrained(tmp_path / "trained")
    paths = {name: str(tmp_path / path) for name, path in (("model", "trained"), ("output", "released"))}
    release.main(release.ScriptArguments(**paths, results=str(tmp_path / "none.json")))
    stored = load_file(tmp_path / "released/model.safetensors")
    dtypes = {weight.dtype for name, weight in stored.items() if ".image_tokenizer." in name}
    assert dtypes == {torch.bfloat16 if rounded else torch.float32}
    released = AutoModelForMultimodalLM.from_pretrained(tmp_path / "released")
    for name, weight in model.model.image_tokenizer.state_dict().items():
        torch.testing.assert_close(released.model.image_tokenizer.state_dict()[name], weight, rtol=0, atol=0)
