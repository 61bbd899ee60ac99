"""`build_preferences.py`, run on a tiny model."""

import json
import math
import os
import re
import shutil
import sys
import threading
from collections import Counter
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, load_from_disk
from PIL import Image
from scripted_server import scripted_server

import dps_hf.judges.openai
import dps_hf.judges.server
import dps_hf.nano.exact_judge
from dps_hf.command_line import run_script
from dps_hf.data.record import record
from dps_hf.judges.openai import OpenAIJudge
from dps_hf.judges.verdict import Verdict
from dps_hf.preferences.shards import is_finished, is_written


EXACT = "dps_hf.nano.exact_judge.exact_judge"


@pytest.fixture
def build(example):
    return example("build_preferences.py")


@pytest.fixture
def script(build, saved_model, tmp_path, monkeypatch):
    """The script as a function of its arguments; its judge takes some responses for better than others."""

    def judge(cases):
        def number(response):
            return sum(response.encode() if isinstance(response, str) else response.tobytes())

        return [Verdict({"exact": number(case.response) % 5 / 4}, "", "parity", case.origin) for case in cases]

    monkeypatch.setattr(dps_hf.nano.exact_judge, "exact_judge", judge)

    def run(**arguments):
        fields = {"output": tmp_path / "out", "model": saved_model, "num_prompts": 6, "num_responses": 3}
        if "votes" not in arguments:
            fields |= {"judge": EXACT, "tasks": {"dps_hf.nano.tasks.scenes_t2i": 1}}
        script = build.ScriptArguments(**{**fields, "prompts_per_part": 2, **arguments})
        build.main(script)
        return script.output

    return run


def rows(output) -> list[dict]:
    return load_from_disk(output / "paired").to_list()


def test_two_machines_make_what_one_makes(script, tmp_path):
    whole = rows(script(output=tmp_path / "whole"))
    script(shard_index=1, num_shards=2)
    assert not (tmp_path / "out" / "paired").exists()
    assert rows(script(shard_index=0, num_shards=2)) == whole
    assert (tmp_path / "out" / "pairs.png").exists()


def test_parts_that_are_there_are_not_made_again(script, tmp_path):
    output = script()
    before = rows(output)
    (output / "parts" / "part-00001.json").unlink()  # as a kill would leave it
    times = {path: path.stat().st_mtime_ns for path in output.glob("parts/*")}
    script()
    assert rows(output) == before
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"part-00001.paired.parquet", "part-00001.unpaired.parquet"}


def test_data_of_other_settings_is_not_mixed_in(script):
    script()
    with pytest.raises(ValueError, match=r"output must be a folder of its own: .*num_responses was 3 and is 4"):
        script(num_responses=4)


def test_data_of_other_weights_at_the_same_place_is_not_mixed_in(script, saved_model, make_model, tmp_path):
    again = shutil.copytree(saved_model, tmp_path / "model")
    script(model=again)
    other = make_model()
    with torch.no_grad():
        other.lm_head.weight += 1
    other.save_pretrained(again)
    with pytest.raises(ValueError, match="other weights"):
        script(model=again)


def test_a_rewrite_by_a_judge_that_cannot_write_is_refused_before_anything_is_sampled(script):
    with pytest.raises(ValueError, match="refine_margin needs a judge with a method refine"):
        script(refine_margin=0.2)


def test_other_machines_never_read_half_of_the_settings(script, monkeypatch):
    written = []
    whole = os.replace

    def replace(source, target):
        if Path(target).name == "settings.json":
            written.append((Path(target).exists(), json.loads(Path(source).read_text())["num_responses"]))
        whole(source, target)

    monkeypatch.setattr(os, "replace", replace)
    output = script()
    assert written == [(False, "3")] and (output / "settings.json").exists()


def test_votes_and_prompts_at_once_are_refused(script, tmp_path):
    with pytest.raises(ValueError, match="votes bring their own prompts; got prompts"):
        script(votes=tmp_path / "votes.jsonl", prompts=tmp_path / "mine.txt")


def test_votes_need_no_judge(script, tmp_path):
    votes = [
        {"prompt": "What is it?", "chosen": "a star", "rejected": "a cow"},
        {"prompt": "And this?", "response": "a cat", "thumb": "up"},
    ]
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, votes)))
    output = script(votes=tmp_path / "votes.jsonl")
    (row,) = rows(output)
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("a star", "a cow")
    assert load_from_disk(output / "unpaired")["label"] == [True, False, True]
    assert is_written(output / "parts", 0)


def test_prompts_may_come_from_a_file_in_place_of_tasks(script, tmp_path):
    mine = [f"star {i}" for i in range(20)]
    (tmp_path / "mine.txt").write_text("\n".join(mine))
    statistics = json.loads((script(prompts=tmp_path / "mine.txt") / "statistics.json").read_text())
    assert statistics["counts"]["prompts"] == 20 and statistics["counts"]["responses"] == 60
    assert {row["prompt"][0]["content"] for row in rows(tmp_path / "out")} <= set(mine)
    assert {row["task"] for row in rows(tmp_path / "out")} == {"mine"}


def test_prompts_may_come_from_a_folder_of_records_with_pictures(script, tmp_path):
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "green")]
    records = [record("mine", [picture, "Which?"], ["red"]) for picture in pictures]

    def save(name, records):
        columns = {field: [one[field] for one in records] for field in ("messages", "images")}
        Dataset.from_dict(columns).save_to_disk(tmp_path / name)
        return tmp_path / name

    output = script(prompts=save("mine", records))
    counts = json.loads((output / "statistics.json").read_text())["counts"]
    assert counts["prompts"] == counts["prompts with pictures"] == 3 and counts["responses"] == 9
    assert all(len(row["images"]) == 1 and row["task"] == "mine" for row in rows(output))
    with pytest.raises(ValueError, match="other prompts"):  # the same questions, other right answers
        script(prompts=save("other", [record("mine", [picture, "Which?"], ["blue"]) for picture in pictures]))


def test_a_file_of_prompts_that_says_something_else_by_now_is_another_work(script, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a star\na heart")
    script(prompts=path)
    path.write_text("a star\na cat")
    with pytest.raises(ValueError, match="other prompts"):
        script(prompts=path)
    copy = tmp_path / "elsewhere.txt"
    copy.write_text("a star\na heart\n")
    script(prompts=copy)  # on another machine


def test_a_file_of_prompts_that_is_not_there_spoils_no_folder(script, tmp_path):
    with pytest.raises(FileNotFoundError):
        script(prompts=tmp_path / "typo.txt")
    (tmp_path / "right.txt").write_text("a star")
    script(prompts=tmp_path / "right.txt")


def test_a_judge_without_any_verdict_is_named(build, saved_model, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("a cat on a sofa")
    fields = {"model": saved_model, "judge": EXACT, "prompts": tmp_path / "mine.txt"}
    assert build.main(build.ScriptArguments(output=tmp_path / "out", **fields)) == 2
    assert f"the judge {EXACT} has no verdict on any response. Take another judge." in capsys.readouterr().out


def test_responses_without_pairs_and_labels_are_an_error_with_the_counts_and_a_remedy(
    build, saved_model, tmp_path, monkeypatch, capsys
):
    def judge(cases):
        return [Verdict({"exact": 0.7}, "", "all alike", case.origin) for case in cases]

    monkeypatch.setattr(dps_hf.nano.exact_judge, "exact_judge", judge)
    (tmp_path / "mine.txt").write_text("a cat\na dog")
    fields = {"model": saved_model, "judge": EXACT, "prompts": tmp_path / "mine.txt", "num_responses": 3}
    script = build.ScriptArguments(output=tmp_path / "out", **fields)
    monkeypatch.setattr(sys, "argv", ["build_preferences.py"])
    parser = SimpleNamespace(parse_args_and_config=lambda: (script,), parse_args_into_dataclasses=None)
    with pytest.raises(SystemExit) as exit:
        run_script(build.main, parser)
    assert exit.value.code == 2
    error = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"^error: .* has no pairs: 2 prompts, 6 responses, 6 verdicts, \d+ duplicates; \d+ pairs", error)
    assert "differ by less than the margin 0.1" in error and "set a lower margin" in error


def test_thumbs_without_pairs_are_enough_for_kto(script, tmp_path, capsys):
    votes = [
        {"prompt": f"What is {i}?", "response": "a cat", "thumb": thumb} for i, thumb in enumerate(("up", "down"))
    ]
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, votes)))
    output = script(votes=tmp_path / "votes.jsonl")
    assert load_from_disk(output / "unpaired")["label"] == [True, False] and not (output / "paired").exists()
    assert "no pairs for DPO" in capsys.readouterr().out


JUDGES = '''
from dps_hf.judges.verdict import Verdict


def likes_some(cases, kinds=5):
    scores = [sum(case.response.encode()) % kinds / (kinds - 1) for case in cases]
    return [Verdict({"some": score}, "", f"some of {kinds}", case.origin) for case, score in zip(cases, scores)]


class LikesTokens:
    """A judge that needs the model, compares and rewrites."""

    def __init__(self, model, processor, most=6):
        self.vocabulary, self.processor, self.most = model.config.vocab_size, processor, most

    def __call__(self, cases):
        return [self.verdict(len(self.processor.tokenizer(case.response)["input_ids"]), case) for case in cases]

    def verdict(self, length, case, rewrite=None):
        score = min(1, length / self.most)
        return Verdict({"length": score}, str(self.vocabulary), "tokens", case.origin, rewrite)

    def compare(self, first, second):
        won = [a.response > b.response for a, b in zip(first, second)]
        return [(self.verdict(w * 99, a), self.verdict((not w) * 99, b)) for w, a, b in zip(won, first, second)]

    def refine(self, cases, margin=0.1):
        return [self.verdict(0, case, "a much better answer") for case in cases]
'''


@pytest.fixture
def my_judges(tmp_path, monkeypatch):
    """The name of a module with two judges in the folder from which the script is started."""
    (tmp_path / "my_judges.py").write_text(JUDGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_judges"
    sys.modules.pop("my_judges", None)


ANSWERS = {
    "tasks": {"dps_hf.nano.tasks.scenes_cot": 1}, "selection": {"max_length_ratio": 99},
    "generation": {"max_new_tokens": 12},
}  # fmt: skip


def test_a_judge_may_be_anybodys_function_with_its_options(script, my_judges, tmp_path):
    judge = f"{my_judges}.likes_some"
    output = script(judge=judge, judge_options={"kinds": 3}, **ANSWERS)
    assert counts(output)["unjudged"] == 0 and counts(output)["responses"] == 18 and rows(output)
    for row in rows(output):
        assert row["judge"] == "some of 3" and json.loads(row["aspects_chosen"]) == {"some": row["score_chosen"]}
        assert sum(row["chosen"][0]["content"].encode()) % 3 / 2 == row["score_chosen"] > row["score_rejected"]
    with pytest.raises(ValueError, match=r"output must be a folder of its own: .*judge_options"):
        script(judge=judge, judge_options={"kinds": 4}, **ANSWERS)
    with pytest.raises(ValueError, match=f"judge_options must have only kinds for the judge {judge}; got kind"):
        script(judge=judge, judge_options={"kind": 4}, output=tmp_path / "other", **ANSWERS)


def test_a_judge_may_be_anybodys_class_that_needs_the_model_and_compares_and_rewrites(script, my_judges, tmp_path):
    judge = f"{my_judges}.LikesTokens"
    scored = script(judge=judge, judge_options={"most": 40}, output=tmp_path / "scored", **ANSWERS)
    assert counts(scored)["unjudged"] == 0
    compared = script(judge=judge, pairwise=True, output=tmp_path / "compared", **ANSWERS)
    assert rows(compared) and all(
        row["chosen"][0]["content"] > row["rejected"][0]["content"] for row in rows(compared)
    )
    rewritten = script(judge=judge, refine_margin=0.1, output=tmp_path / "rewritten", **ANSWERS)
    assert {row["origin_chosen"] for row in rows(rewritten)} == {"rewrite by tokens"}


class Server:
    """In place of an `OpenAIJudge`: gives as many verdicts as it is told to in all, and counts what it owes."""

    will_answer, asked = 0, 0

    __signature__ = signature(OpenAIJudge)

    def __init__(self, **options):
        self.options, self.counts = options, Counter()
        Server.made = self

    def __call__(self, cases):
        return [self.verdict(case, len(case.response)) for case in cases]

    def verdict(self, case, value):
        Server.asked += 1
        if Server.asked > Server.will_answer:
            self.counts["no reply"] += 1
            return None
        return Verdict({"a": value % 5 / 4}, "", "server", case.origin)

    def compare(self, first, second):
        Server.asked += 2 * len(first)

        def verdicts(won):
            return tuple(Verdict({"a": score}, "", "server", "model") for score in (float(won), float(not won)))

        return [verdicts(a.response > b.response) for a, b in zip(first, second)]


@pytest.fixture
def served(script, monkeypatch):
    """The script with that judge, on questions with answers in words: two prompts a part, three answers each."""
    monkeypatch.setattr(dps_hf.judges.openai, "OpenAIJudge", Server)
    Server.will_answer = Server.asked = 0
    options = {"model": "judge-1", "rubric": "answer"}

    def run(**arguments):
        fields = {
            "judge": "openai",
            "judge_options": options,
            "tasks": {"dps_hf.nano.tasks.scenes_cot": 1},
            "selection": {"max_length_ratio": 99},
        }
        return script(**{**fields, "generation": {"max_new_tokens": 8}, **arguments})  # fmt: skip

    return run


def test_what_a_judge_did_not_reply_to_is_asked_again_and_nothing_else_is(served, tmp_path, capsys):
    Server.will_answer = 8
    output = served()
    counts = json.loads((output / "statistics.json").read_text())["counts"]
    assert (counts["prompts"], counts["responses"], counts["no reply"]) == (4, 12, 4), "two parts, the second in part"
    assert Server.asked == 18, "where there is no reply at all nothing more is sampled"
    assert json.loads((output / "statistics.json").read_text())["missing parts"] == 1
    printed = capsys.readouterr().out
    assert "The judge answers no more" in printed and "1 of 3 parts are still to be written" in printed
    Server.will_answer = 99
    served()
    assert Server.asked == 18 + 12
    counts = json.loads((output / "statistics.json").read_text())["counts"]
    assert counts["prompts"] == 6 and "no reply" not in counts
    assert "missing parts" not in json.loads((output / "statistics.json").read_text())
    whole = served(output=tmp_path / "whole")
    assert rows(output) == rows(whole)


def test_a_judge_that_ends_in_the_words_of_its_server_is_an_error_that_quotes_them(served, monkeypatch):
    monkeypatch.setattr(Server, "fault", "HTTP 429: come back tomorrow", raising=False)
    Server.will_answer = 8
    with pytest.raises(RuntimeError, match="The judge answers no more: HTTP 429: come back tomorrow"):
        served()
    Server.will_answer = 99
    assert json.loads((served() / "statistics.json").read_text())["counts"]["prompts"] == 6


# A judge behind a server

EMPTY_ACCOUNT = 402, {"error": {"message": "Insufficient Balance"}}


def completion(content: str, finish_reason: str = "stop") -> tuple[int, dict]:
    message = {"role": "assistant", "content": content}
    return 200, {"choices": [{"index": 0, "finish_reason": finish_reason, "message": message}]}


def good(path: str, request: dict) -> tuple[int, dict]:
    """A judge that takes some answers for better than others, and rewrites them."""
    instructions, content = (message["content"] for message in request["messages"])
    case = content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)
    if '"rewrite"' in instructions:
        return completion(json.dumps({"rationale": "", "rewrite": "A better one."}))
    said = case[case.index("<response") :].split("\n")[1:-2]
    value = 10 if "A better one." in said else 1 + sum("\n".join(said).encode()) % 9
    return completion(json.dumps({"rationale": "", "correct": value, "complete": value, "clear": value}))


@pytest.fixture
def judged(script, tmp_path, monkeypatch):
    """The script with a real judge, and its server: six questions in three parts, three answers each."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(dps_hf.judges.server, "BACKOFF_SECONDS", 0.01)
    with scripted_server() as server:

        def run(output="out", **arguments):
            options = {
                "model": "judge-1",
                "rubric": "answer",
                "base_url": server.base_url,
                "progress": False,
                "retries": 1,
            }
            fields = {"judge": "openai", "judge_options": options, "tasks": {"dps_hf.nano.tasks.scenes_cot": 1}}
            fields |= {"selection": {"max_length_ratio": 99}, "generation": {"max_new_tokens": 8}}
            return script(output=run.folder / output, **{**fields, **arguments})

        run.server, run.folder = server, tmp_path
        yield run


def counts(output: Path) -> dict:
    return json.loads((output / "statistics.json").read_text())["counts"]


@pytest.mark.parametrize("answered", [0, 8])
@pytest.mark.parametrize(
    "how", [{}, {"refine_margin": 0.1}, {"pairwise": True}], ids=["scored", "rewritten", "compared"]
)
def test_an_empty_account_stops_the_work_finishes_no_part_and_the_same_command_goes_on(answered, how, judged):
    server = judged.server

    def script(path, request):
        if how.get("pairwise"):
            verdict = {"rationale": "", **dict.fromkeys(("correct", "complete", "clear"), "first")}
            whole = completion(json.dumps(verdict))
        else:
            whole = good(path, request)
        return whole if len(server.requests) <= script.answered else EMPTY_ACCOUNT

    script.answered, server.reply = answered, script
    with pytest.raises(RuntimeError, match="refuses model 'judge-1' with HTTP 402: Insufficient Balance"):
        judged(**how)
    parts = judged.folder / "out" / "parts"
    left = [part for part in range(3) if not is_finished(parts, part)]
    assert left and not (judged.folder / "out" / "statistics.json").exists()
    kept = len((judged.folder / "out" / "replies-0.jsonl").read_text().splitlines())
    assert kept <= answered, "no refusal is kept for a reply"

    script.answered = math.inf
    output, asked = judged(**how), len(server.requests)
    assert all(is_finished(parts, part) for part in range(3)) and counts(output)["prompts"] == 6
    whole = judged("whole", **how)
    assert counts(output) == counts(whole)
    assert len((output / "replies-0.jsonl").read_text().splitlines()) == len(server.requests) - asked
    if (whole / "paired").exists():
        assert rows(output) == rows(whole)


@pytest.mark.parametrize("status", [400, 402, 403, 413])
def test_an_answer_that_the_server_refuses_by_itself_has_no_verdict_and_is_counted(status, judged, caplog, capsys):
    flagged: list[str] = []

    def script(path, request):
        case = request["messages"][1]["content"]
        with lock:
            if not flagged and len(judged.server.requests) > 4:
                flagged.append(case)
        return (status, {"error": {"message": "flagged"}}) if case in flagged else good(path, request)

    lock, judged.server.reply = threading.Lock(), script
    output = judged()
    assert counts(output)["refused"] == counts(output)["unjudged"] == 1 and "no reply" not in counts(output)
    assert all(is_finished(output / "parts", part) for part in range(3))
    assert re.search(r"refused +1\n", capsys.readouterr().out) and f"HTTP {status}: flagged" in caplog.text
    asked = len(judged.server.requests)
    judged()
    assert len(judged.server.requests) == asked, "all is finished"


def test_a_judge_whose_replies_are_all_cut_stops_the_work(judged):
    judged.server.reply = lambda path, request: completion('{"rationale": "', "length")
    with pytest.raises(RuntimeError, match="The judge answers no more: its reply is cut, finish_reason length"):
        judged()
    assert not is_written(judged.folder / "out" / "parts", 0)
    judged.server.reply = good
    assert counts(judged())["prompts"] == 6


def test_a_judge_may_be_given_more_to_spend_but_not_another_name(served):
    Server.will_answer = 99
    options = {"model": "judge-1", "rubric": "answer"}
    served(judge_options={**options, "max_calls": 10})
    served(judge_options={**options, "max_calls": 20, "concurrency": 2})
    assert Server.made.options["max_calls"] == 20
    with pytest.raises(ValueError, match="other judge_options"):
        served(judge_options={**options, "model": "judge-2"})


def test_a_key_among_the_options_is_refused_and_shown_nowhere(served, tmp_path):
    with pytest.raises(ValueError, match=r"judge_options must have only .*key_variable.*; got api_key") as refused:
        served(judge_options={"model": "judge-1", "rubric": "answer", "api_key": "sk-secret"})
    assert "sk-secret" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_responses_may_be_compared_in_place_of_scored(served):
    output = served(pairwise=True)
    for row in rows(output):
        assert row["chosen"][0]["content"] > row["rejected"][0]["content"]
        assert row["score_chosen"] > row["score_rejected"] and row["judge"] == "server"
    with pytest.raises(ValueError, match="pairwise needs a judge with a method compare"):
        served(pairwise=True, judge=EXACT, judge_options={})


def test_drawings_that_the_model_did_not_come_to_are_counted(script, build, monkeypatch):
    whole = build.sample_responses
    monkeypatch.setattr(
        build, "sample_responses", lambda *args, **options: [group[1:] for group in whole(*args, **options)]
    )
    counts = json.loads((script() / "statistics.json").read_text())["counts"]
    assert (counts["responses"], counts["no drawing"]) == (12, 6)


def test_votes_without_a_usable_line_are_an_error_that_names_the_file(script, tmp_path):
    (tmp_path / "votes.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"votes must have at least one usable line; .*votes.jsonl has none"):
        script(votes=tmp_path / "votes.jsonl")


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ({"judge": "exat"}, "judge must be the dotted path of a function or class, .*; got 'exat'"),
        (
            {"judge": "openai", "judge_options": {"model": "m", "rubric": "answer", "urll": "x"}},
            "judge_options must have only model, rubric, .*base_url.*; got urll",
        ),
        ({"selection": {"margn": 0.2}}, "selection must have only aspect, margin, .*; got margn"),
        ({"selection": {"margin": 2}}, "margin must be above 0"),
        ({"num_prompts": 0}, "num_prompts must be 1 or more; got 0"),
        ({"num_responses": 0}, "num_responses must be 1 or more"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"tasks": {"scene_t2i": 1}}, "must be the dotted path of a function or class, .*; got 'scene_t2i'"),
        ({"tasks": ["scenes_t2i"]}, "weights must give each task a number"),
        ({"think": ["scene_t2i"]}, "think must name tasks that are asked, scenes_t2i; got scene_t2i"),
        ({"votes": Path("nowhere.jsonl")}, "nowhere.jsonl"),
        ({"judge": "votes"}, "votes must be given for the judge 'votes' and for no other; got None, 'votes'"),
        ({"votes": Path("votes.jsonl"), "judge": EXACT}, "votes must be given for the judge 'votes' and for no other"),
        ({"tasks": {}}, "One of tasks, prompts and votes must be given"),
    ],
)
def test_what_is_wrong_is_named_before_the_folder_is_taken(script, tmp_path, wrong, complaint):
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        script(**wrong)
    assert rows(script())


def test_an_aspect_that_no_verdict_has_is_named(script, capsys):
    script(selection={"aspect": "shape"})
    assert "no score for the aspect 'shape' on any response" in capsys.readouterr().out
