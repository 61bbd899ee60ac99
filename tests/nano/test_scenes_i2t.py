import numpy as np
from PIL import Image

from dps_hf.data.record import validate
from dps_hf.nano.detector import detect, match_things
from dps_hf.nano.scenes_i2t import scenes_i2t
from dps_hf.nano.wording import DESCRIBE, LANGUAGES, parse_caption


def test_descriptions_fit_the_picture_and_the_language_of_the_question():
    rng = np.random.default_rng(0)
    asked = {question: language for language, questions in DESCRIBE.items() for question in questions}
    languages = set()
    right = []
    for _ in range(60):
        example = scenes_i2t(rng, "validation")
        validate(example)
        (picture,) = example["images"]
        assert isinstance(picture, Image.Image)
        answer = example["messages"][1]["content"][0]["text"]
        kinds = parse_caption(answer)
        assert kinds is not None
        right.append(match_things(detect(picture), kinds))
        language = asked[example["messages"][0]["content"][1]["text"]]
        assert (language == "zh") == any("一" <= letter <= "鿿" for letter in answer)
        languages.add(language)
    assert np.mean(right) > 0.97
    assert languages == set(LANGUAGES)


def test_half_of_the_pictures_have_a_white_ground():
    rng = np.random.default_rng(0)
    corners = [np.asarray(scenes_i2t(rng, "train")["images"][0])[[0, 0, 0, -1], [0, 4, 8, -1]] for _ in range(100)]
    assert 0.3 < np.mean([(corner == 255).all() for corner in corners]) < 0.7
