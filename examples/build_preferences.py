"""Samples responses of a DPS, judges them, and writes preference data that trl's trainers take as it is.

python examples/build_preferences.py --config examples/recipes/nano/preferences.yaml
python examples/build_preferences.py --output runs/thumbs --votes votes.jsonl
python examples/build_preferences.py --config ... --shard_index 0 --num_shards 8    # on the first of 8 machines

After a kill, or an error of the judge's server, the same command continues with the first missing part. Machines that
share a folder each write their own parts; the one that finds all parts joins them. The output folder then has `paired`
for DPO, `unpaired` for KTO, `statistics.json`, and `pairs.png` with the first pairs. If there is nothing to learn
from, the script says why and exits with 2.
"""

from collections import Counter
from dataclasses import dataclass, field, fields
from hashlib import sha256
from itertools import islice
from pathlib import Path

from transformers.utils.logging import tqdm
from trl import TrlParser

from dps_hf import NANO
from dps_hf.command_line import run_script
from dps_hf.data.mixture import name_of
from dps_hf.inference import decode, digest_weights, load
from dps_hf.judges.resolve import find_judge, keep_verdict_options, make_judge
from dps_hf.judges.verdict import NO_REPLY, REFUSED, Judge, read_counts, read_fault
from dps_hf.judges.votes import read_votes
from dps_hf.preferences.pairs import Selection
from dps_hf.preferences.prompts import read_prompts, sample_prompts
from dps_hf.preferences.responses import compare_responses, group_votes, judge_responses, sample_responses
from dps_hf.preferences.shards import draw_sheet, is_finished, is_written, join_parts, write_part
from dps_hf.training.resuming import keep_settings


VOTES = "votes"  # the name under which people's votes take the place of a judge


@dataclass
class ScriptArguments:
    """
    output: folder for everything that is written.
    model: folder or name of the model whose responses are sampled.
    tasks: dotted path of each task to its weight; the questions of the tasks are the prompts.
    think: names of the tasks in which the model thinks first.
    prompts: your own prompts, in place of those of tasks: a text file with a prompt for a drawing on each line, or
        records as a file or a folder in any form that the training scripts read. The last question of each record is
        asked, and the judge gets its answer as the right one.
    num_prompts: number of different prompts from tasks.
    num_responses: number of responses to each prompt.
    generation: whatever `generate` takes, for example temperature and guidance_scale.
    judge: "openai", or the dotted path of a function or class such as `my_package.my_judge`; "votes" reads `votes`.
    judge_options: keyword arguments of the judge. "openai" needs `model` and `rubric`; replies are kept in `output`.
    pairwise: the judge compares every two responses to a prompt, in place of scoring each one by itself. The score of
        a response is the share of comparisons that it wins. Eight responses take 56 calls of "openai".
    refine_margin: the judge also rewrites answers; rewrites whose score is higher by this much become responses.
    votes: JSONL file of people's votes, which contain prompts, responses and verdicts; no judge is called.
    selection: fields of `Selection`: aspect, margin, max_pairs, max_length_ratio, good, bad, only_good.
    prompts_per_part: number of prompts in one part; a kill loses at most one part.
    """

    output: Path
    model: str = NANO
    tasks: dict = field(default_factory=dict)
    think: list[str] = field(default_factory=list)
    prompts: Path | None = None
    num_prompts: int = 1000
    num_responses: int = 8
    generation: dict = field(default_factory=dict)
    judge: str = VOTES
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
        if (self.judge == VOTES) != bool(self.votes):
            raise ValueError(
                f"votes must be given for the judge 'votes' and for no other; got {self.votes}, {self.judge!r}."
            )
        judge = None if self.votes else find_judge(self.judge, self.judge_options)
        for name in ("num_prompts", "num_responses", "prompts_per_part", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}.")
        if not 0 <= self.shard_index < self.num_shards:
            raise ValueError(
                f"shard_index must be from 0 to num_shards - 1; got {self.shard_index} and {self.num_shards}."
            )
        if self.refine_margin is not None and not hasattr(judge, "refine"):
            raise ValueError(f"refine_margin needs a judge with a method refine; got {self.judge}. Leave it out.")
        if self.pairwise and not hasattr(judge, "compare"):
            raise ValueError(f"pairwise needs a judge with a method compare; got {self.judge}. Leave it out.")
        if self.pairwise and self.refine_margin is not None:
            raise ValueError("pairwise and refine_margin exclude each other: rewrites are scored. Leave one out.")
        if self.votes and self.prompts:
            raise ValueError(
                f"votes bring their own prompts; got prompts {self.prompts}, too. Leave one of the two out."
            )
        if not (self.tasks or self.prompts or self.votes):
            raise ValueError("One of tasks, prompts and votes must be given; got none.")
        known = [one.name for one in fields(Selection)]
        if unknown := set(self.selection) - set(known):
            raise ValueError(f"selection must have only {', '.join(known)}; got {', '.join(sorted(unknown))}.")


def build_judge(script: ScriptArguments, model, processor) -> Judge:
    # Each machine reads the replies that any other one has paid for, however the work was shared before.
    return make_judge(
        script.judge,
        script.judge_options,
        lambda: (model, processor),
        cache=script.output / f"replies-{script.shard_index}.jsonl",
        other_caches=sorted(script.output.glob("replies-*.jsonl")),
    )


def report(script: ScriptArguments, statistics: dict) -> bool:
    """Prints the statistics, and returns whether there are pairs for DPO, or good and bad responses for KTO."""
    counts = Counter(statistics["counts"])
    for name, number in counts.items():
        print(f"{name:24}{number:8}")
    if "paired" in statistics:
        print("means of pairs:", ", ".join(f"{name} {mean:g}" for name, mean in statistics["paired"]["means"].items()))
    elif counts["good"] and counts["bad"]:
        print("There are no pairs for DPO, only labels for KTO.")
    else:
        print(f"error: {explain_no_pairs(script, counts)}")
        return False
    print(f"Preference data: {script.output}")
    return True


def explain_no_pairs(script: ScriptArguments, counts: Counter[str]) -> str:
    selection, verdicts = Selection(**script.selection), counts["responses"] - counts["unjudged"]
    found = f"{script.output} has no pairs: {counts['prompts']} prompts, {counts['responses']} responses, {verdicts} "
    found += (
        f"verdicts, {counts['duplicates']} duplicates; {counts['ties']} pairs of responses are ties, whose scores "
    )
    found += f"differ by less than the margin {selection.margin}"
    reasons = {
        "unequal lengths": f"differ in length by more than max_length_ratio {selection.max_length_ratio}",
        "none good": f"have no response with the score {selection.good}, which only_good asks for",
        "one thinks": "have only one response with thoughts",
    }
    found += "".join(f", {counts[name]} {reason}" for name, reason in reasons.items() if counts[name])
    if counts[NO_REPLY]:
        return f"{found}. The judge did not reply to {counts[NO_REPLY]} cases: run the same command to ask again."
    if not verdicts:
        lacking = f"no score for the aspect {selection.aspect!r}" if selection.aspect else "no verdict"
        refused = f"; its server refuses {counts[REFUSED]} cases, as warned above" if counts[REFUSED] else ""
        return f"{found}: the judge {script.judge} has {lacking} on any response{refused}. Take another judge."
    if script.votes:
        return f"{found}. Collect votes, good and bad ones, on several responses to one prompt."
    remedy = "Take another output, and sample more responses, warmer ones, or set a lower margin."
    if any(counts[name] for name in reasons):
        remedy = "Take another output, and sample more responses, or relax the selection."
    replies = script.judge_options.get("cache", script.output / f"replies-{script.shard_index}.jsonl")
    if Path(replies).exists():
        remedy += f" judge_options: {{cache: {replies}}} takes the replies so far from there, without paying again."
    return f"{found}. {remedy}"


def main(script: ScriptArguments) -> int:
    """Returns the exit status: 2 if there is nothing to learn from."""
    # Errors in the arguments come before anything is written.
    selection, parts, num_prompts = Selection(**script.selection), script.output / "parts", script.num_prompts
    votes = read_votes(script.votes) if script.votes else []
    if script.votes and not votes:
        raise ValueError(f"votes must have at least one usable line; {script.votes} has none. See the warning above.")
    free = ("output", "shard_index", "num_shards")  # parts do not depend on these
    settings = {name: value for name, value in vars(script).items() if name not in free}
    settings["judge_options"] = keep_verdict_options(script.judge_options)  # nor on budget and pace of a judge
    if script.votes:
        settings["votes"], known = script.votes.resolve(), set(script.think)
    elif script.prompts:  # its content counts: on another machine the same file may be in another place
        mine = [(p.key, p.answers, p.steps, p.task) for p in read_prompts(script.prompts, script.think)]
        num_prompts, known = len(mine), {task for *_, task in mine}
        settings["prompts"] = sha256(repr([one[:-1] for one in mine]).encode()).hexdigest()
        prompts = read_prompts(script.prompts, script.think)
    else:
        prompts, known = sample_prompts(script.tasks, script.seed, script.think), set(map(name_of, script.tasks))
    if idle := set(script.think) - known:
        raise ValueError(f"think must name tasks that are asked, {', '.join(sorted(known))}; got {', '.join(idle)}.")
    model, processor = load(script.model)
    if not script.votes:
        judge = build_judge(script, model, processor)
    keep_settings(script.output, {**settings, "weights": digest_weights(model)}, "output")

    # Parts
    if script.votes:
        num_parts = 1
        write_part(parts, 0, zip(*group_votes(votes, model, processor)), selection)
    else:
        num_parts, prompts = -(-num_prompts // script.prompts_per_part), islice(prompts, num_prompts)
        for part in tqdm(range(num_parts), desc="parts"):
            asked = list(islice(prompts, script.prompts_per_part))
            if part % script.num_shards != script.shard_index or is_finished(parts, part):
                continue
            # A part does not depend on the machine that makes it, nor on what was made before.
            seed = (script.seed * num_parts + part) * script.prompts_per_part
            answers = sample_responses(
                model, processor, asked, script.num_responses, seed, script.batch_size, **script.generation
            )
            lost = {"no drawing": len(asked) * script.num_responses - sum(map(len, answers))}
            before = read_counts(judge)
            if script.pairwise:
                answers = compare_responses(judge, asked, answers)
            else:
                answers = judge_responses(judge, asked, answers, script.refine_margin)
            after = read_counts(judge)
            lost |= {name: after[name] - before[name] for name in (NO_REPLY, REFUSED)}
            if lost[NO_REPLY] and not any(answer.verdict for group in answers for answer in group):
                # More responses could not be judged either.
                if fault := read_fault(judge):
                    raise RuntimeError(f"The judge answers no more: {fault}. The same command continues from here.")
                print("The judge answers no more, as the warning above says. The same command continues from here.")
                break
            write_part(parts, part, zip(asked, answers), selection, lost)

    # Datasets
    missing = [part for part in range(num_parts) if not is_written(parts, part)]
    if missing:
        print(f"{len(missing)} of {num_parts} parts are still to be written.")
    if len(missing) == num_parts or any(part % script.num_shards != script.shard_index for part in missing):
        return 0  # other machines write the missing parts; the one that finds all parts joins them
    statistics = join_parts(parts, num_parts, script.output)
    if "paired" in statistics:
        page = draw_sheet(script.output / "paired", lambda text: decode(model, processor, text))
        page.save(script.output / "pairs.png")
    return 0 if report(script, statistics) else 2


if __name__ == "__main__":
    run_script(main, TrlParser(ScriptArguments))
