"""What is asked in alignment: never what is measured."""

from importlib import import_module

import numpy as np

from dps_hf.data import scenes
from dps_hf.data.scenes import has_unseen_count, has_unseen_pair, held_out
from dps_hf.data.splits import UNSEEN, UNSEEN_PAIRS
from dps_hf.data.unseen import questions, wishes
from dps_hf.data.wording import DRAW, LANGUAGES, parse_wish
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


def test_no_scene_that_is_asked_about_is_kept_out_as_all_that_are_measured_are(monkeypatch):
    shown, render = [], scenes.render
    scenes_cot = import_module("dps_hf.data.scenes_cot")
    monkeypatch.setattr(scenes_cot, "render", lambda scene: shown.append(scene) or render(scene))
    asked = questions(np.random.default_rng(0), 200, 0.5)
    assert len(asked) == len(shown) == 200 and all(one["steps"] for one in asked)
    assert not any(map(held_out, shown))
    pairs, counts = ([has(scene) for scene in shown] for has in (has_unseen_pair, has_unseen_count))
    assert 0.18 < sum(pairs) / 200 < 0.32 and 0.18 < sum(counts) / 200 < 0.32
    assert not any(pair and count for pair, count in zip(pairs, counts))
    subject = Subject(None, None, 100, 0, {})
    assert all(held_out(scene) for what in (None, *UNSEEN) for scene in subject.held_out_scenes(unseen=what))
