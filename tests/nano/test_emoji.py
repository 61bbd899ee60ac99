from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from dps_hf.data.record import validate
from dps_hf.nano.emoji import (
    FOREIGN,
    QUESTIONS,
    STYLES,
    augment,
    choose_held_out_style,
    emoji_i2t,
    emoji_t2i,
    get_picture,
    jitter_colours,
    may_mirror,
    read_pairs,
    read_pictures,
    select_pairs,
)


def test_the_collection_is_complete():
    assert read_pictures().shape == (8054, 64, 64, 3) and read_pictures().dtype == np.uint8
    assert len(read_pairs()) == 8054
    assert len({pair.codepoints for pair in read_pairs()}) == 1698
    assert {pair.style for pair in read_pairs()} == set(STYLES)
    assert all(name for pair in read_pairs() for name in pair.names.values())


def test_all_but_a_few_pairs_are_in_one_split_and_about_8_percent_are_held_out():
    train, validation = set(p.index for p in select_pairs("train")), set(p.index for p in select_pairs("validation"))
    assert not train & validation
    orange_square = {p.index for p in read_pairs() if p.codepoints == "1f7e7"}
    assert len(orange_square) == 5 and not orange_square & (train | validation)
    assert 8054 - len(train | validation) == 5 + 6, "six look like another emoji, which is trained on"
    assert 0.07 < len(validation) / 8054 < 0.09
    with pytest.raises(ValueError, match="split must be 'train' or 'validation'; got 'test'"):
        select_pairs("test")


def test_every_emoji_held_out_is_learnt_in_two_other_styles():
    seen = defaultdict(set)
    for pair in select_pairs("train"):
        seen[pair.codepoints].add(pair.style)
    for pair in select_pairs("validation"):
        assert len(seen[pair.codepoints] - {pair.style}) >= 2
    assert Counter(p.style for p in select_pairs("validation")).keys() == {p.style for p in select_pairs("train")}


def test_the_split_does_not_depend_on_the_order_of_styles():
    styles = ["noto", "blob", "twemoji", "fluent_flat"]
    for i in range(200):
        held_out = choose_held_out_style(f"1f{i:03x}", styles)
        assert held_out == choose_held_out_style(f"1f{i:03x}", styles[::-1])
        assert held_out is None or held_out in styles
    assert all(choose_held_out_style(f"1f{i:03x}", styles[:2]) is None for i in range(200))


def test_prompts_name_the_emoji_in_some_language_and_the_style():
    by_name = {(name, p.style): p for p in select_pairs("validation") for name in p.names.values()}
    rng = np.random.default_rng(0)
    english = 0
    for _ in range(300):
        example = emoji_t2i(rng, "validation")
        validate(example)
        name, style = example["messages"][0]["content"][0]["text"].removesuffix(" style").rsplit(", ", 1)
        pair = by_name[name, {plain: column for column, plain in STYLES.items()}[style]]
        assert np.array_equal(np.asarray(example["images"][0]), read_pictures()[pair.index])
        english += name == pair.names["en"]
    assert english / 300 == pytest.approx(0.8, abs=0.1)


def test_answers_come_in_the_language_of_their_questions():
    names = {language: {p.names[language] for p in select_pairs("validation")} for language in QUESTIONS}
    asked_in = {question: language for language, questions in QUESTIONS.items() for question in questions}
    assert len(asked_in) == sum(map(len, QUESTIONS.values())), "two languages share a question"
    rng = np.random.default_rng(0)
    first, languages = Counter(), Counter()
    for _ in range(400):
        example = emoji_i2t(rng, "validation")
        validate(example)
        question = example["messages"][0]["content"][1]["text"]
        asked = [(question, example["messages"][1]["content"][0]["text"]), *example["more"]]
        heard = []
        assert example["steps"] in names["en"], "one recognises first, and then translates"
        for question, answer in asked:
            if question == "What is this, and in which style?":
                name, style = answer.removesuffix(" style").rsplit(", ", 1)
                assert name in names["en"] and style in STYLES.values()
                languages["style"] += 1
                heard.append("en")
            else:
                assert answer in names[asked_in[question]]
                heard.append(asked_in[question])
            if heard[-1] == "en":
                assert answer.startswith(example["steps"])
        assert "en" in heard and len(set(heard)) == len(heard) == FOREIGN + 1
        languages.update(heard)
        first[heard[0]] += 1
    assert languages.keys() == {*QUESTIONS, "style"} and first.keys() == set(QUESTIONS)
    assert languages["style"] / 400 == pytest.approx(0.1, abs=0.05)


def test_training_pictures_vary_and_validation_pictures_do_not():
    pair = select_pairs("train")[0]
    rng = np.random.default_rng(0)
    moved = [augment(get_picture(pair), rng) for _ in range(5)]
    assert len({image.tobytes() for image in moved}) == 5
    assert {image.size for image in moved} == {(64, 64)}
    known = {read_pictures()[p.index].tobytes() for p in select_pairs("validation")}
    assert all(emoji_i2t(rng, "validation")["images"][0].tobytes() in known for _ in range(20))


def test_augmentation_keeps_the_background_white_and_the_picture_complete():
    image = Image.new("RGB", (64, 64), "white")
    image.paste((255, 0, 0), (2, 2, 62, 62))
    rng = np.random.default_rng(0)
    for _ in range(50):
        pixels = np.asarray(augment(image, rng)).astype(int)
        assert tuple(pixels[32, 32]) == (255, 0, 0)
        assert pixels[..., 0].min() > 250, "something other than white came in"
        side = np.sqrt((255 - pixels[..., 1]).sum() / 255)
        assert 0.84 * 60 < side < 1.06 * 60


def test_only_emoji_without_left_and_right_are_mirrored():
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (0, 0, 20, 64))
    rng = np.random.default_rng(0)

    def share_mirrored(mirror: bool) -> float:
        return np.mean([np.asarray(augment(image, rng, mirror))[32, 55, 0] < 128 for _ in range(100)])

    assert share_mirrored(False) == 0
    assert share_mirrored(True) == pytest.approx(0.5, abs=0.2)

    english = {p.names["en"]: p for p in read_pairs()}
    for name in ("dog face", "grinning face", "pizza", "cactus"):
        assert english[name].may_mirror, name
    for name in ("right arrow", "two o’clock", "flag: France", "keycap: 2", "input latin letters", "sleeping face"):
        assert not english[name].may_mirror, name
    assert not may_mirror("1f415", ["dog", "facing right"])


def test_colour_jitter_is_slight():
    image = get_picture(select_pairs("train")[0])
    before, after = (np.asarray(x).astype(int) for x in (image, jitter_colours(image, np.random.default_rng(0))))
    assert 0 < np.abs(after - before).max() < 30
