"""Samples responses of a DPS, has them judged, and makes preference data that trl's trainers take as it is.

python examples/build_preferences.py --config examples/recipes/nano/preferences.yaml
python examples/build_preferences.py --output runs/thumbs --votes votes.jsonl
python examples/build_preferences.py --config ... --shard_index 0 --num_shards 8    # on the first of 8 machines

Killed at any moment, or stopped by a judge whose server answers no more, the same command goes on with the part that is
missing. Machines that share a folder each write their parts; whoever finds all parts there joins them: `paired` for DPO,
`unpaired` for KTO, figures, a page of pairs.
"""

from dataclasses import dataclass, field, fields
from hashlib import sha256
from itertools import islice
from pathlib import Path

from transformers.utils.logging import tqdm
from trl import TrlParser

from dps_hf import NANO
from dps_hf.inference import decode, load, weights_digest
from dps_hf.judges.openai import NO_REPLY, REFUSED
from dps_hf.judges.resolve import JUDGES, check_judge, counted, last_fault, named_judge
from dps_hf.judges.verdict import Judge
from dps_hf.judges.votes import read_votes
from dps_hf.preferences.pairs import Selection
from dps_hf.preferences.responses import compared, judged, read_prompts, sample, task_prompts, voted
from dps_hf.preferences.shards import is_finished, is_written, join_parts, sheet, write_part
from dps_hf.training.resuming import keep_settings


@dataclass
class ScriptArguments:
    """
    output: folder for all that is made.
    model: whose responses are sampled.
    tasks: task to weight; its questions are the prompts.
    think: tasks in which the model thinks aloud first.
    prompts: what is asked in place of the tasks' questions, all of it: a text file with a prompt for a drawing on each line,
        or a folder of records that `datasets` saved, whose last questions are asked and whose answers "exact" takes as the
        right ones. Of what it cannot check, drawings of anything but scenes and emoji, it has no verdict: take another judge.
    num_prompts, num_responses: how many different prompts, and how many responses to each.
    generation: what `generate` takes, for example temperature and guidance_scale.
    judge: "exact", "self" or "openai".
    judge_options: arguments of `OpenAIJudge`, `model` and `rubric` at least; replies are kept in the output folder.
    pairwise: has it compare each two responses to a prompt, in both orders, in place of scoring each by itself; a response's
        score is the share that it wins. Eight responses are 56 calls.
    refine_margin: has the judge rewrite answers, and takes rewrites that it scores by so much better.
    votes: a JSONL file of people's votes in place of model and judge.
    selection: fields of `Selection`: aspect, margin, max_pairs, max_length_ratio, good, bad, only_good.
    prompts_per_part: what is lost by a kill at most.
    """

    output: Path
    model: str = NANO
    tasks: dict = field(default_factory=lambda: {"dps_hf.nano.tasks.scenes_t2i": 1})
    think: list[str] = field(default_factory=list)
    prompts: Path | None = None
    num_prompts: int = 1000
    num_responses: int = 8
    generation: dict = field(default_factory=dict)
    judge: str = field(default="exact", metadata={"choices": JUDGES})
    judge_options: dict = field(default_factory=dict)
    pairwise: bool = False
    refine_margin: float | None = None
    votes: Path | None = None
    selection: dict = field(default_factory=dict)
    prompts_per_part: int = 64
    batch_size: int = 16
    seed: int = 0
    shard_index: int = 0
    num_shards: int = 1

    def __post_init__(self):
        check_judge(self.judge, self.judge_options)  # of what comes from a file no choices are checked
        for name in ("num_prompts", "num_responses", "prompts_per_part", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}.")
        if not 0 <= self.shard_index < self.num_shards:
            raise ValueError(
                f"shard_index must be from 0 to num_shards - 1; got {self.shard_index} and {self.num_shards}."
            )
        if self.refine_margin is not None and self.judge != "openai":
            raise ValueError(f"refine_margin needs a judge that rewrites, openai; got {self.judge}. Leave it out.")
        if self.pairwise and (self.judge != "openai" or self.refine_margin is not None):
            raise ValueError(
                "pairwise needs the judge openai, and no refine_margin: what is rewritten is scored by itself."
            )
        if self.votes and self.prompts:
            raise ValueError(
                f"votes bring their own prompts; got prompts {self.prompts}, too. Leave one of the two out."
            )
        known = [one.name for one in fields(Selection)]
        if unknown := set(self.selection) - set(known):
            raise ValueError(f"selection must have only {', '.join(known)}; got {', '.join(sorted(unknown))}.")


def make_judge(script: ScriptArguments, model, processor) -> Judge:
    # What any machine was answered is asked by none again, whichever way the work was shared before.
    caches = {
        "cache": script.output / f"replies-{script.shard_index}.jsonl",
        "other_caches": sorted(script.output.glob("replies-*.jsonl")),
    }
    return named_judge(script.judge, {**caches, **script.judge_options}, lambda: (model, processor))


def report(script: ScriptArguments, statistics: dict) -> None:
    counts, aspect = statistics["counts"], script.selection.get("aspect")
    for name, number in counts.items():
        print(f"{name:24}{number:8}")
    if "paired" in statistics:
        print("means of pairs:", statistics["paired"]["means"])
    elif counts.get(NO_REPLY):
        print("No pairs: the judge did not reply. The same command asks again.")
    elif counts["unjudged"] == counts["responses"]:
        lacking = f"no score for the aspect {aspect!r}" if aspect else "no verdict"
        refused = f"; its server refuses {counts[REFUSED]} cases, as warned above" if counts.get(REFUSED) else ""
        print(f"No pairs: the judge has {lacking} on any response{refused}. Take another one than {script.judge!r}.")
    else:
        print(
            "No pairs: no two responses to one prompt differ by the margin. Sample more into another output, or with a lower margin."
        )
        if script.judge == "openai" and not script.votes:
            replies = script.judge_options.get("cache", script.output / f"replies-{script.shard_index}.jsonl")
            print(
                f"What was replied need not be paid again: judge_options: {{cache: {replies}}} takes the same answers from there."
            )
    print(f"Preference data: {script.output}")


def main(script: ScriptArguments) -> None:
    # All that can be wrong is found before the folder is taken.
    selection, parts, num_prompts = Selection(**script.selection), script.output / "parts", script.num_prompts
    votes = read_votes(script.votes) if script.votes else []
    if script.votes and not votes:
        raise ValueError(f"votes must hold one usable line at least; {script.votes} has none. See the warning above.")
    free = ("output", "shard_index", "num_shards")  # what a part holds does not depend on these
    settings = {name: value for name, value in vars(script).items() if name not in free}
    # Nor on budget and pace of a judge: who raises them goes on.
    settings["judge_options"] = {name: script.judge_options.get(name) for name in ("model", "rubric", "base_url")}
    if script.votes:
        settings["votes"], known = script.votes.resolve(), set(script.think)
    elif script.prompts:  # what it says counts: it may change, and lie elsewhere on another machine
        mine = [(p.key, p.answers, p.steps, p.task) for p in read_prompts(script.prompts, script.think)]
        num_prompts, known = len(mine), {task for *_, task in mine}
        settings["prompts"] = sha256(repr([one[:-1] for one in mine]).encode()).hexdigest()
        prompts = read_prompts(script.prompts, script.think)
    else:
        prompts, known = task_prompts(script.tasks, script.seed, script.think), set(script.tasks)
    if idle := set(script.think) - known:
        raise ValueError(f"think must name tasks that are asked, {', '.join(sorted(known))}; got {', '.join(idle)}.")
    model, processor = load(script.model)
    if not script.votes:
        judge = make_judge(script, model, processor)
    keep_settings(script.output, {**settings, "weights": weights_digest(model)}, "output")

    # Parts
    if script.votes:
        num_parts = 1
        write_part(parts, 0, zip(*voted(votes, model, processor)), selection)
    else:
        num_parts, prompts = -(-num_prompts // script.prompts_per_part), islice(prompts, num_prompts)
        for part in tqdm(range(num_parts), desc="parts"):
            asked = list(islice(prompts, script.prompts_per_part))
            if part % script.num_shards != script.shard_index or is_finished(parts, part):
                continue
            # Whichever machine makes it, and whatever was made before, a part is the same.
            seed = (script.seed * num_parts + part) * script.prompts_per_part
            answers = sample(
                model, processor, asked, script.num_responses, seed, script.batch_size, **script.generation
            )
            lost = {"no drawing": len(asked) * script.num_responses - sum(map(len, answers))}
            before = {name: counted(judge, name) for name in (NO_REPLY, REFUSED)}
            if script.pairwise:
                answers = compared(judge, asked, answers)
            else:
                answers = judged(judge, asked, answers, script.refine_margin)
            lost |= {name: counted(judge, name) - number for name, number in before.items()}
            if lost[NO_REPLY] and not any(answer.verdict for group in answers for answer in group):
                # What else were sampled could not be judged either.
                if fault := last_fault(judge):
                    raise RuntimeError(f"The judge answers no more: {fault}. The same command goes on from here.")
                print("The judge answers no more, as the warning above says. The same command goes on from here.")
                break
            write_part(parts, part, zip(asked, answers), selection, lost)

    # Datasets
    missing = [part for part in range(num_parts) if not is_written(parts, part)]
    if missing:
        print(f"{len(missing)} of {num_parts} parts are still to be written.")
    if len(missing) == num_parts or any(part % script.num_shards != script.shard_index for part in missing):
        return  # other machines write theirs, and whoever finds all joins them
    statistics = join_parts(parts, num_parts, script.output)
    if "paired" in statistics:
        page = sheet(script.output / "paired", lambda text: decode(model, processor, text))
        page.save(script.output / "pairs.png")
    report(script, statistics)


if __name__ == "__main__":
    main(*TrlParser(ScriptArguments).parse_args_and_config())
