"""How often dps-nano is right in people's own words and on pictures as people have them."""

from collections import Counter
from collections.abc import Sequence

from dps_hf.data.record import get_text, pick
from dps_hf.evaluation.figures import Figure, share
from dps_hf.evaluation.metrics import name_match
from dps_hf.evaluation.subject import Subject
from dps_hf.nano.asking import ask_freely
from dps_hf.nano.detector import detect, fulfils
from dps_hf.nano.everyday import sample_wish
from dps_hf.nano.people import is_right, read_questions, read_wishes
from dps_hf.nano.scenes import HALF_WHITE, render, sample_split
from dps_hf.nano.scenes_t2i import arrange_scene
from dps_hf.nano.speech import say_freely
from dps_hf.nano.talk import talk as talk_task
from dps_hf.nano.views import sample_view
from dps_hf.nano.wording import DESCRIBE, LANGUAGES, Kind, parse_caption, write_caption


def everyday_wishes(subject: Subject) -> dict[str, Figure]:
    """The drawing shows what a wish in people's own words names, and nothing else.

    `people` and `people_en` ... are the wishes of [`~dps_hf.nano.people.read_wishes`]; `held_out_wording` are wishes
    in requests that training excludes.
    """
    rng = subject.rng("everyday wishes")
    chosen = [
        read_wishes()[i] for i in subject.rng("people's wishes").permutation(len(read_wishes()))[: subject.items]
    ]
    drawings = subject.draw([one.text for one in chosen])
    right = [fulfils(detect(drawing), one.wish) for drawing, one in zip(drawings, chosen, strict=True)]
    figures = _share_by_language("people", right, [one.language for one in chosen])
    wishes, texts = [], []
    for _ in range(subject.items):
        wishes.append(sample_wish(rng, "validation"))
        language = "en" if rng.random() < 0.5 else pick(rng, LANGUAGES[1:])
        texts.append(say_freely(rng, wishes[-1], language, held_out=True))
    right = [fulfils(detect(drawing), wish) for drawing, wish in zip(subject.draw(texts), wishes, strict=True)]
    return figures | {"held_out_wording": share(right)}


def everyday_questions(subject: Subject) -> dict[str, Figure]:
    """Questions in people's own words, answered directly, and after thinking (`think_`).

    `people` and `people_en` ... are those of [`~dps_hf.nano.people.read_questions`], on white; `held_out_wording` are
    questions in forms that training excludes, half of them about pictures of any geometry, whose answers are exact.
    """
    all_questions, rng = read_questions(), subject.rng("everyday questions")
    chosen = [all_questions[i] for i in subject.rng("people's questions").permutation(len(all_questions))]
    chosen = chosen[: subject.items]
    pictures = [render(arrange_scene(one.scene)) for one in chosen]
    held_out, shown = [], []
    for index in range(subject.items):
        if index % 2:
            picture, scene = sample_view(rng, "validation")
        else:
            scene = sample_split(rng, "validation", grounds=HALF_WHITE)
            picture = render(scene)
        shown.append(picture)
        language = "en" if rng.random() < 0.5 else pick(rng, LANGUAGES[1:])
        held_out.append(ask_freely(rng, scene, language, held_out=True))
    figures: dict[str, Figure] = {}
    for prefix, think in (("", False), ("think_", True)):
        answers = subject.ask([one.text for one in chosen], pictures, think)
        right = [is_right(answer, one.answers) for answer, one in zip(answers, chosen, strict=True)]
        figures |= _share_by_language(f"{prefix}people", right, [one.language for one in chosen])
        answers = subject.ask([one.text for one in held_out], shown, think)
        figures[f"{prefix}held_out_wording"] = share(map(name_match, answers, [one.answer for one in held_out]))
    return figures


def everyday_descriptions(subject: Subject) -> dict[str, Figure]:
    """The description of a picture of any ground and geometry names all things with number, colour and shape.

    `one_object` is of one thing, `exact` of one to four, `sized` as `exact` but with the right sizes, too.
    """
    rng, figures = subject.rng("everyday views"), {}
    for name, count in (("one_object", 1), ("exact", None)):
        pictures, scenes = zip(*(sample_view(rng, "validation", count) for _ in range(subject.items)))
        answers = subject.ask([DESCRIBE["en"][0]] * len(scenes), list(pictures))
        found = [parse_caption(answer) for answer in answers]
        truths = [parse_caption(write_caption(scene)) for scene in scenes]
        figures[name] = share(_drop_sizes(one) == _drop_sizes(truth) for one, truth in zip(found, truths))
        if count is None:
            figures["sized"] = share(one == truth for one, truth in zip(found, truths))
    return figures


def talk(subject: Subject) -> dict[str, Figure]:
    """What is said without a picture, in forms that training excludes, is answered rightly, `think` after thinking."""
    rng = subject.rng("talk")
    records = [talk_task(rng, "validation") for _ in range(subject.items)]
    texts, truths = ([get_text(record["messages"][i : i + 1]) for record in records] for i in (0, 1))
    return {
        name: share(map(name_match, subject.ask(texts, think=think), truths))
        for name, think in (("direct", False), ("think", True))
    }


def _drop_sizes(kinds: Counter[Kind] | None) -> Counter[tuple[str, str]] | None:
    if kinds is None:
        return None
    bare: Counter[tuple[str, str]] = Counter()
    for (_, colour, shape), number in kinds.items():
        bare[colour, shape] += number
    return bare


def _share_by_language(name: str, right: Sequence[bool], languages: Sequence[str]) -> dict[str, Figure]:
    figures = {name: share(right)}
    for language in LANGUAGES:
        marks = [mark for mark, one in zip(right, languages, strict=True) if one == language]
        if marks:
            figures[f"{name}_{language}"] = share(marks)
    return figures
