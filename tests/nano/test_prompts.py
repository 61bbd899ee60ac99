"""Alignment prompts, none of which the evaluation uses."""

import numpy as np

from dps_hf.evaluation.subject import Subject
from dps_hf.nano.held_out import FORMS, select_prompts
from dps_hf.nano.prompts import make_prompts
from dps_hf.nano.splits import UNSEEN_PAIRS
from dps_hf.nano.wording import DRAW, LANGUAGES, parse_wish


def test_alignment_contains_no_prompt_of_the_evaluation():
    prompts = make_prompts(np.random.default_rng(0), 400, 0.8)
    asked = {repr(sorted(wish.kinds.items(), key=repr)) + repr(wish.relation) for wish in map(parse_wish, prompts)}
    subject = Subject(None, None, 500, 0, {})
    measured = {p for name in FORMS if name != "unseen_count" for p in select_prompts(subject, name)}
    assert len(set(prompts)) == 400 and len(measured) > 1000
    for prompt in measured:
        wish = parse_wish(prompt)
        assert repr(sorted(wish.kinds.items(), key=repr)) + repr(wish.relation) not in asked
    last_ways = [DRAW[language][-1].partition("{}")[0] for language in LANGUAGES]
    assert not [prompt for prompt in prompts if any(way and prompt.startswith(way) for way in last_ways)]


def test_the_given_share_of_prompts_has_an_unseen_pair_with_other_things():
    asked = [parse_wish(prompt) for prompt in make_prompts(np.random.default_rng(1), 400, 0.8)]
    unseen_pairs = [wish for wish in asked if any(kind[1:] in UNSEEN_PAIRS for kind in wish.kinds)]
    assert 0.74 < len(unseen_pairs) / len(asked) < 0.86
    assert all(wish.kinds.total() > 1 for wish in unseen_pairs)
