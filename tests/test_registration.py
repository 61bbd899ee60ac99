"""What `import dps_hf` costs, and what it teaches the Auto classes."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import dps_hf


ROOT = Path(__file__).parents[1]


def run(script: str, *arguments) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def test_import_is_cheap():
    script = """
import sys, time
import transformers
before = set(sys.modules)  # some of the heavy ones come with transformers, where other packages are installed
start = time.process_time()
import dps_hf
print(time.process_time() - start)
heavy = {"torch", "numpy", "PIL", "dps_hf.model", "transformers.models.auto.configuration_auto"}
assert not heavy & (set(sys.modules) - before), heavy & (set(sys.modules) - before)
"""
    assert float(run(script)) < 1  # seconds; loading torch alone takes longer


LOAD = """
import sys
from transformers import *  # noqa
import dps_hf
{}
folder = sys.argv[1]
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText,
    AutoModelForMultimodalLM, AutoProcessor,
)
for _ in range(2):
    print(type(AutoProcessor.from_pretrained(folder)) is dps_hf.DPSProcessor)
    print(type(AutoImageProcessor.from_pretrained(folder)) is dps_hf.DPSImageProcessor)
    config = AutoConfig.from_pretrained(folder)
    print(type(config) is dps_hf.DPSConfig)
    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        print(type(auto_class.from_pretrained(folder)) is dps_hf.DPSForConditionalGeneration)
        print(type(auto_class.from_config(config)) is dps_hf.DPSForConditionalGeneration)
    print(type(AutoModel.from_pretrained(folder)) is dps_hf.DPSModel)
    codes = AutoConfig.from_pretrained(folder + "/image_tokenizer")
    print(type(codes) is dps_hf.DPSImageTokenizerConfig)
    print(type(AutoModel.from_pretrained(folder + "/image_tokenizer")) is dps_hf.DPSImageTokenizer)
    print(type(AutoModel.from_config(codes)) is dps_hf.DPSImageTokenizer)
"""


@pytest.fixture(scope="module")
def saved(tiny_model, tiny_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("registration")
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    tiny_model.model.image_tokenizer.save_pretrained(folder / "image_tokenizer")
    for path in folder.glob("*.py"):
        path.unlink()  # so that only the package can give the classes
    return folder


@pytest.mark.parametrize("early", [True, False], ids=["before the Auto classes", "after the Auto classes"])
def test_auto_classes_know_dps(saved, early):
    before = "import dps_hf" if early else "from transformers import AutoConfig, AutoModel, AutoProcessor"
    script = LOAD.replace("from transformers import *  # noqa", before).format("")
    assert set(run(script, saved).split()) == {"True"}


def test_image_processor_alone_is_known_first(saved):
    """The processors are found by name, before any config is."""
    script = """
import sys
import dps_hf
from transformers import AutoImageProcessor
print(type(AutoImageProcessor.from_pretrained(sys.argv[1])).__module__)
"""
    assert run(script, saved) == "dps_hf.model.image_processing_dps\n"


def test_names_are_there():
    for name in dps_hf.__all__:
        assert getattr(dps_hf, name) is not None and name in dir(dps_hf)
    assert dps_hf.DPSConfig.__name__ == "DPSConfig"
    assert isinstance(dps_hf.NANO, str) and Path(dps_hf.NANO).parts[-2:] == ("checkpoints", "dps-nano")
    with pytest.raises(AttributeError, match="no attribute 'DPSEverything'"):
        _ = dps_hf.DPSEverything


def test_version_is_that_of_the_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert dps_hf.__version__ == settings["metadata"]["version"]


def test_helpers_of_trl_and_of_the_pipelines_find_the_class_by_name():
    from transformers.models.auto import modeling_auto

    assert dps_hf.DPSConfig
    for names in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    ):
        assert names["dps"] == "DPSForConditionalGeneration"
