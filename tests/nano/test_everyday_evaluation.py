from PIL import Image

from dps_hf.evaluation.subject import Subject
from dps_hf.nano import everyday_evaluation
from dps_hf.nano.people import read_questions, read_wishes
from dps_hf.nano.scenes import render
from dps_hf.nano.scenes_t2i import arrange_scene
from dps_hf.nano.views import sample_view
from dps_hf.nano.wording import write_caption


def test_who_knows_what_people_mean_draws_and_answers_their_lists_rightly_and_no_other_words():
    meant = {one.text: one.wish for one in read_wishes()}
    known = {(one.text, render(arrange_scene(one.scene)).tobytes()): one.answers[0] for one in read_questions()}

    class Reader(Subject):
        def draw(self, prompts, pictures=None, guided=True, think=False):
            white = Image.new("RGB", (64, 64), "white")
            return [render(arrange_scene(meant[text])) if text in meant else white for text in prompts]

        def ask(self, questions, pictures=None, think=False):
            return [known.get((text, picture.tobytes()), "?") for text, picture in zip(questions, pictures)]

    subject = Reader(None, None, items=40, seed=0, sampling={})
    wishes, questions = (
        everyday_evaluation.everyday_wishes(subject),
        everyday_evaluation.everyday_questions(subject),
    )
    assert wishes["people"]["value"] == 1 and wishes["held_out_wording"]["value"] == 0
    assert questions["people"]["value"] == questions["think_people"]["value"] == 1
    assert questions["held_out_wording"]["value"] == 0
    assert sum(wishes[f"people_{language}"]["n"] for language in ("en", "de", "es", "zh")) == 40


def test_a_description_with_other_sizes_is_right_but_not_sized(monkeypatch):
    shown = []

    def witnessed(*arguments):
        picture, scene = sample_view(*arguments)
        shown.append(scene)
        return picture, scene

    class Sighted(Subject):
        def ask(self, questions, pictures=None, think=False):
            captions = [write_caption(scene) for scene in shown[-len(questions) :]]
            return [text.replace("big", "small") for text in captions]

    monkeypatch.setattr(everyday_evaluation, "sample_view", witnessed)
    figures = everyday_evaluation.everyday_descriptions(Sighted(None, None, items=12, seed=0, sampling={}))
    assert figures["one_object"]["value"] == 1 and 0 < figures["sized"]["value"] < 1
