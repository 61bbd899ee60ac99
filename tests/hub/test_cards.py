import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard

import dps_hf
from dps_hf.hub.cards import dataset_card, model_card
from dps_hf.nano.card import make_card


CARDS = Path(__file__).parents[2] / "model_cards"
FIELDS = {
    "description": "It adds.",
    "training": "One epoch.",
    "limits": "It cannot subtract.",
    "recipe": "learning_rate: 0.1",
    "data": [{"data": "sums", "what": "all of them", "licence": "MIT"}],
    "method": "DPO",
    "judge": "the exact judge",
}


@pytest.fixture
def results(tmp_path):
    def write(value: float, name: str = "results.json") -> Path:
        report = {
            "model": "tiny",
            "parameters": 1_250_000,
            "recipe": {"weights": "abc", "items": 9},
            "seconds": {"my_drawings": 1.0},
            "command": "python examples/evaluate.py",
            "my_drawings": {"exact": {"value": value, "n": 9, "ci95": [0.1, 0.9]}},
            "my_pictures": {"psnr_db": {"value": 22.25, "n": 9, "ci95": [20.0, 24.5]}},
            "reference": {"of_art": {"value": 0.75, "n": 9, "ci95": [0.5, 0.9]}},
        }
        path = tmp_path / name
        path.write_text(json.dumps(report))
        return path

    return write


@pytest.mark.parametrize("template", ["base", "fine-tuned", "aligned", "adapter"])
def test_every_template_makes_a_card_whose_metadata_hold_the_figures(results, template):
    base = None if template == "base" else "me/base"
    types = {"task_types": {"my_drawings": "text-to-image"}, "metric_types": {"my_drawings.exact": "accuracy"}}
    names = {"base_model": base, "datasets": ["me/d"]}
    card = model_card(CARDS / f"{template}.md", "me/sums", results(0.5), **names, **types, **FIELDS)
    first, second = ModelCard(card.content).data.eval_results
    assert (first.task_type, first.metric_type, first.metric_value) == ("text-to-image", "accuracy", 0.5)
    assert first.metric_args == {"n": 9, "ci95": [0.1, 0.9]}
    assert (second.task_type, second.metric_type, second.metric_value) == ("any-to-any", "psnr_db", 22.25)
    data = card.data.to_dict()
    assert data["model-index"][0]["name"] == "sums"
    assert data["license"] == "apache-2.0" and data["datasets"] == ["me/d"] and data.get("base_model") == base
    assert data["library_name"] == ("peft" if template == "adapter" else "transformers")
    for text in (*map(FIELDS.get, ("description", "training", "limits", "recipe")), "| sums | all of them | MIT |"):
        assert text in card.text
    assert "| `my_drawings.exact` | 0.5 | 0.1 – 0.9 | 9 |" in card.text
    assert "| `reference.of_art` | 0.75 |" in card.text, (
        "what is not the model's is in the table, and not in the metadata"
    )
    assert not base or base in card.text
    assert "{{" not in card.text and "{%" not in card.text


def test_figures_before_training_stand_beside_those_after(results):
    before = results(0.25, "before.json")
    card = model_card(CARDS / "fine-tuned.md", "me/sums", results(0.5), before, base_model="me/base", **FIELDS)
    assert "| `my_drawings.exact` | 0.25 | 0.5 | 0.1 – 0.9 | 9 |" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [0.5, 22.25]


def test_a_card_without_results_or_with_a_field_missing_is_refused(results, tmp_path):
    path = results(0.5)
    with pytest.raises(ValueError, match=r"results must be a file; there is none at .*nowhere\.json"):
        model_card(CARDS / "base.md", "me/sums", tmp_path / "nowhere.json", **FIELDS)
    with pytest.raises(ValueError, match="lacks a field: 'limits' is undefined"):
        model_card(CARDS / "base.md", "me/sums", path, **{k: v for k, v in FIELDS.items() if k != "limits"})
    with pytest.raises(ValueError, match="'base_model' is undefined"):
        model_card(CARDS / "adapter.md", "me/sums", path, **FIELDS)
    with pytest.raises(ValueError, match=r"there is no none\.md"):
        model_card(CARDS / "none.md", "me/sums", path, **FIELDS)
    report = json.loads(path.read_text())
    scored = ("my_drawings", "my_pictures", "reference")
    path.write_text(json.dumps({key: value for key, value in report.items() if key not in scored}))
    with pytest.raises(ValueError, match="hold no figure"):
        model_card(CARDS / "base.md", "me/sums", path, **FIELDS)
    path.write_text("{}")
    with pytest.raises(ValueError, match="lack parameters, recipe, command"):
        model_card(CARDS / "base.md", "me/sums", path, **FIELDS)


@pytest.fixture
def my_run(tmp_path, make_model, tiny_processor):
    """A model whose decoder has a card beside it, whose vision tower is on the Hub, and the folder of its training."""
    (tmp_path / "parts" / "my-decoder").mkdir(parents=True)
    (tmp_path / "parts" / "my-decoder" / "README.md").write_text("---\nlicense: mit\n---\n# my decoder\n")
    make_model().save_pretrained(tmp_path / "mine")
    tiny_processor.save_pretrained(tmp_path / "mine")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    config["text_config"]["_name_or_path"] = str(tmp_path / "parts" / "my-decoder")
    config["vision_config"]["_name_or_path"] = "google/siglip-base-patch16-224"
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run").mkdir()
    state = {"global_step": 1500, "epoch": 2.0, "log_history": []}
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps(state))
    settings = {"train": "{'connector': 0.001, 'decoder': 2e-05}", "learning_rate": "2e-05", "lora_r": "None"}
    settings |= {"dataset": str(tmp_path / "pictures"), "use_peft": "False"}
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
    return tmp_path


def my_card(place, results, **fields):
    options = {"folder": place / "mine", "trained": place / "run", "samples": [place / "results.png"]}
    options |= {key: FIELDS[key] for key in ("description", "limits", "data")}
    return model_card(CARDS / "base.md", "me/mine", results, **{**options, **fields})


def test_the_card_of_ones_own_model_names_parts_licences_and_training(my_run, results):
    parts = {"vision tower": {"licence": "apache-2.0"}}
    path = results(0.5)
    report = json.loads(path.read_text())
    report["command"] = f"python examples/evaluate.py --dataset {my_run}/pictures --model={my_run}/mine --items 9"
    report["recipe"]["dataset"] = "pictures"
    report["captions"] = {"cider": {"value": 8.5, "n": 9, "ci95": [8, 9]}}
    path.write_text(json.dumps(report))
    card = my_card(my_run, path, parts=parts, license="mit")
    for row in (
        "| decoder | my-decoder | mit |",
        "| vision tower | google/siglip-base-patch16-224 | apache-2.0 |",
        "| steps | 1,500 |",
        "| epochs | 2 |",
        "| train | {'connector': 0.001, 'decoder': 2e-05} |",
        "| dataset | pictures |",
        "| `captions.cider` | 8.5 | 8 – 9 | 9 |",
        "- `captions`: What the model says of a picture",
        "![Samples](results.png)",
        "`python examples/evaluate.py --dataset pictures --model=mine --items 9`",
    ):
        assert row in card.text, row
    assert str(my_run) not in card.content and "image tokenizer |" not in card.text and "lora_r" not in card.text
    assert card.data.base_model == ["google/siglip-base-patch16-224"] and card.data.license == "mit"
    [captions] = [result for result in card.data.eval_results if result.task_name == "captions"]
    assert (captions.task_type, captions.dataset_name) == ("image-to-text", "pictures")
    assert "nano" not in card.content and "emoji" not in card.content


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {},
            r"lack the licence of the vision tower google/.* Give parts=\{'vision tower': \{'licence': '...'\}\}",
        ),
        ({"parts": {"tower": {"licence": "mit"}}}, "parts must be of decoder, vision tower, image tokenizer"),
        (
            {"parts": {"image tokenizer": {"licence": "mit"}, "vision tower": {"licence": "mit"}}},
            "the name of the image",
        ),
        ({"parts": {"vision tower": {"licence": "apache-2.0"}}}, "license must be given .* they have apache-2.0, mit"),
        ({"folder": "nowhere"}, "nowhere has no config.json"),
        ({"trained": "nowhere"}, "nowhere has no trainer_state.json"),
        ({"base_model": "/data/base"}, "base_model must be a name on the Hub such as me/dps; got the path /data/base"),
        ({"data": [{"data": "cats", "what": "all"}]}, r"data\[0\] lacks licence; got .* Give licence"),
    ],
)
def test_the_error_says_which_field_of_ones_own_card_is_missing(my_run, results, fields, message):
    if "nowhere" in message or "data" in message:
        fields = {"parts": {"vision tower": {"licence": "mit"}}, **fields}
    with pytest.raises(ValueError, match=message):
        my_card(my_run, results(0.5), **fields)


def test_parts_with_one_licence_give_it_to_the_model(my_run, results):
    assert my_card(my_run, results(0.5), parts={"vision tower": {"licence": "mit"}}).data.license == "mit"


def test_the_shipped_card_is_made_of_the_committed_results():
    card = make_card(CARDS / "dps-nano.md", CARDS / "results" / "dps-nano.json")
    shipped = Path(dps_hf.NANO, "README.md").read_text(encoding="utf-8")
    assert card.content == shipped, "run: python examples/nano/release.py --output dps_hf/checkpoints/dps-nano"


def test_a_dataset_card_counts_rows_and_judges(tmp_path):
    rows = {"prompt": ["?"] * 3, "chosen": ["a"] * 3, "judge": ["exact", "exact", "users"]}
    train, test = Dataset.from_dict(rows), Dataset.from_dict({name: values[:1] for name, values in rows.items()})
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    fields = {"making": "By hand.", "limits": "Few.", "description": "Pairs.", "image_tokenizer": "me/tiny"}
    card = dataset_card(CARDS / "preferences.md", "me/pairs", tmp_path / "both", **fields)
    assert card.data.to_dict()["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "data/train-*"}, {"split": "test", "path": "data/test-*"}],
        }
    ]
    for line in ("| `train` | 3 |", "| `test` | 1 |", "| exact | 3 |", "| users | 1 |", "`prompt`, `chosen`, `judge`"):
        assert line in card.text
    train.save_to_disk(tmp_path / "one")
    assert "| `train` | 3 |" in dataset_card(CARDS / "preferences.md", "me/pairs", tmp_path / "one", **fields).text


def test_a_field_that_no_template_shows_is_refused_by_name(results, tmp_path):
    with pytest.raises(ValueError, match=r"fine-tuned.md has no field lisence; its fields are .*license, limits"):
        names = {"base_model": "me/base", "lisence": "mit"}
        model_card(CARDS / "fine-tuned.md", "me/sums", results(0.5), **names, **FIELDS)
    with pytest.raises(ValueError, match=r"preferences.md has no field descripton; its fields are columns"):
        dataset_card(CARDS / "preferences.md", "me/pairs", tmp_path, descripton="Pairs.")


@pytest.mark.parametrize("template", ["base", "fine-tuned", "adapter"])
def test_a_card_says_the_language_that_is_given_or_none(results, template):
    def make(**fields):
        return model_card(
            CARDS / f"{template}.md", "me/sums", results(0.5), base_model="me/base", **FIELDS, **fields
        ).data.to_dict()

    assert "language" not in make() and make(language=["de", "fr"])["language"] == ["de", "fr"]
