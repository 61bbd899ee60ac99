"""Dropout of prompts and of image codes in training records."""

from PIL import Image

from dps_hf.data.dropouts import Dropouts
from dps_hf.data.record import record


RECORDS = [record("t", [f"square {i}"], [Image.new("RGB", (8, 8))]) for i in range(1000)]
LOST = ("drop_prompt", "hidden_codes", "hidden_codes_seed")


def lost(dropouts: Dropouts, index: int) -> list:
    return [dropouts[index][name] for name in LOST]


def test_what_a_record_loses_depends_on_seed_and_index_alone():
    one, other, another = (Dropouts(RECORDS, seed, 0.3, 0.5) for seed in (1, 1, 2))
    forwards = [lost(one, i) for i in range(1000)]
    assert forwards == [lost(other, i) for i in reversed(range(1000))][::-1]
    assert forwards != [lost(another, i) for i in range(1000)]


def test_the_shares_are_those_that_are_asked_for():
    records = [*Dropouts(RECORDS, 0, prompt_dropout=0.2, code_dropout=0.5)]
    assert 150 < sum(one["drop_prompt"] for one in records) < 250
    hidden = [one["hidden_codes"] for one in records if one["hidden_codes"]]
    assert 350 < len(hidden) < 450 and 0.45 < sum(hidden) / len(hidden) < 0.55
    assert not any(one["drop_prompt"] and one["hidden_codes"] for one in records)


def test_the_records_stay_as_they_are():
    for one, other in zip(Dropouts(RECORDS[:9], 0, 1.0, 1.0), RECORDS, strict=False):
        assert {name: one[name] for name in other} == other
    assert len(Dropouts(RECORDS, 0)) == 1000 and not any(name in RECORDS[0] for name in LOST)
