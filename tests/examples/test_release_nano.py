"""`release_nano.py`: what is shipped is what was scored."""

import json

import pytest

from dps_hf import NANO


def test_figures_of_other_weights_are_not_written_into_the_card(example, tmp_path):
    release, results = example("release_nano.py"), tmp_path / "results.json"
    results.write_text(json.dumps({"recipe": {"weights": "abc"}}))
    with pytest.raises(ValueError, match=r"is of weights abc, .* Score them first"):
        release.main(release.ScriptArguments(output=NANO, results=str(results)))
