"""What is asked in alignment: never what is measured."""

from importlib import import_module

import numpy as np
import pytest

from dps_hf.data import scenes
from dps_hf.data.scenes import has_unseen_count, has_unseen_pair, held_out
from dps_hf.data.splits import UNSEEN, UNSEEN_PAIRS
from dps_hf.data.unseen import descriptions, questions, wishes
from dps_hf.data.wording import DRAW, LANGUAGES, parse_caption, parse_wish
from dps_hf.evaluation.tasks import FORMS, Subject


def test_nothing_that_is_measured_is_asked_to_be_drawn():
    prompts = wishes(np.random.default_rng(0), 400, 0.8)
    asked = {repr(sorted(wish.kinds.items(), key=repr)) + repr(wish.relation) for wish in map(parse_wish, prompts)}
    measured = {
        p for name in FORMS if name != "unseen_count" for p in Subject(None, None, 500, 0, {}).held_out_prompts(name)
    }
    assert len(set(prompts)) == 400 and len(measured) > 1000
    for prompt in measured:
        wish = parse_wish(prompt)
        assert repr(sorted(wish.kinds.items(), key=repr)) + repr(wish.relation) not in asked
    last_ways = [DRAW[language][-1].partition("{}")[0] for language in LANGUAGES]
    assert not [prompt for prompt in prompts if any(way and prompt.startswith(way) for way in last_ways)]


def test_wishes_name_unseen_pairs_in_a_share_and_never_alone():
    asked = [parse_wish(prompt) for prompt in wishes(np.random.default_rng(1), 400, 0.8)]
    unseen_pairs = [wish for wish in asked if any(kind[1:] in UNSEEN_PAIRS for kind in wish.kinds)]
    assert 0.74 < len(unseen_pairs) / len(asked) < 0.86
    assert all(wish.kinds.total() > 1 for wish in unseen_pairs)


@pytest.mark.parametrize("made", [descriptions, questions])
def test_no_scene_is_kept_out_as_all_that_are_measured_are_and_a_share_shows_an_unseen_pair(made, monkeypatch):
    shown, render = [], scenes.render
    for module in ("unseen", "scenes_cot"):
        monkeypatch.setattr(
            import_module(f"dps_hf.data.{module}"), "render", lambda scene: shown.append(scene) or render(scene)
        )
    assert len(made(np.random.default_rng(0), 200, 0.8)) == len(shown) == 200
    assert not any(held_out(scene) or has_unseen_count(scene) for scene in shown)
    assert 0.72 < sum(map(has_unseen_pair, shown)) / 200 < 0.88
    subject = Subject(None, None, 100, 0, {})
    assert all(held_out(scene) for what in (None, *UNSEEN) for scene in subject.held_out_scenes(unseen=what))


def test_descriptions_have_captions_and_questions_have_steps():
    for one in descriptions(np.random.default_rng(0), 20, 0.8):
        assert parse_caption(one["messages"][1]["content"][0]["text"])
    assert all(one["steps"] for one in questions(np.random.default_rng(0), 20, 0.8))
