"""Group relative policy optimisation of a DPS, with a judge's scores as rewards, of answers or of drawings.

python examples/grpo.py --config examples/recipes/nano/grpo.yaml
accelerate launch examples/grpo.py --config examples/recipes/nano/grpo.yaml

https://huggingface.co/papers/2402.03300. After a kill, the same command continues from the last checkpoint and comes
to the same losses.
"""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset, Features, Image, List, Value
from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser

from dps_hf.command_line import run_script, set_training_defaults
from dps_hf.data.formats import BadRow
from dps_hf.data.record import get_text, record
from dps_hf.inference import load
from dps_hf.judges.resolve import find_judge, make_judge
from dps_hf.judges.verdict import NO_REPLY, Case, Judge, ask_judge, read_counts, read_fault
from dps_hf.preferences.prompts import Prompt, read_prompts, sample_prompts
from dps_hf.training.checks import RecordCheck
from dps_hf.training.curves import Curves
from dps_hf.training.last_norm import make_norm_optimizer
from dps_hf.training.loading import check_four_bit_training, forbid_words, load_for_training
from dps_hf.training.optimizer import make_optimizer
from dps_hf.training.precision import choose_precision
from dps_hf.training.resuming import is_finished, train_and_save
from dps_hf.training.trained_parts import (
    NoteTrainedParts,
    SkipUnusedParts,
    choose_trained_parts,
    complete_adapter,
    describe_trained,
    make_lora_config,
)


@dataclass
class ScriptArguments:
    """
    judge: "openai", or the dotted path of a function or class such as `my_package.my_judge`. A class that asks for
        `model` and `processor` gets a copy of the model as it is before training.
    judge_options: keyword arguments of the judge. "openai" needs `model` and `rubric`; replies are kept in
        `output_dir`.
    tasks: dotted path of each task to its weight; all must ask for drawings, or all for answers.
    prompts: your own prompts, in place of those of tasks: a text file with a prompt for a drawing on each line, or
        records as a file or a folder in any form that the training scripts read. The last question of each record is
        asked, and the judge gets its answer as the right one.
    num_prompts: number of different prompts from tasks.
    aspect: the aspect whose score is the reward; if left out, the mean of all aspects.
    train: which parts learn and at what rate, such as `{connector: 1.0e-3, new_tokens: 1.0e-3, decoder: 2.0e-5}`; see
        `dps_hf/training/trained_parts.py`. 0 freezes. A part that is not named has `learning_rate` if it is trained
        by default; the vision tower is not.
    norm_learning_rate: learning rate of the logarithm of the scale of the decoder's last norm, which decides how
        confident the model is. 0 leaves the norm as it is.
    """

    judge: str
    judge_options: dict = field(default_factory=dict)
    tasks: dict = field(default_factory=dict)
    prompts: Path | None = None
    num_prompts: int = 1000
    aspect: str | None = None
    train: dict = field(default_factory=dict)
    norm_learning_rate: float = 0.0

    def __post_init__(self):
        find_judge(self.judge, self.judge_options)
        if not (self.tasks or self.prompts):
            raise ValueError("tasks or prompts must be given; got none.")


class JudgeReward:
    """A judge as a reward function of trl: a score from 0 to 1, or None if the judge has no verdict.

    Raises:
        RuntimeError: the judge's server replies no more.
        ValueError: no response of the first batch has a reward.
    """

    def __init__(self, judge: Judge, model, processor, draw: bool, aspect: str | None = None):
        self.__name__ = "reward"
        self.judge, self.model, self.processor, self.draw, self.aspect = judge, model, processor, draw, aspect
        self.rewarded = False

    def __call__(self, prompts, completions, completion_ids, answers, text, images=None, **kwargs):
        responses = [get_text(completion) for completion in completions]
        if self.draw:
            tokens = torch.tensor(completion_ids, device=self.model.device)  # whole drawings have one length
            pixels = self.model.decode_image_tokens(tokens)
            responses = self.processor.post_process_multimodal_output(pixels, generation_mode="image")
        shown = images or [()] * len(responses)
        cases = [
            Case(words, response, tuple(pictures or ()), tuple(right))
            for words, response, pictures, right in zip(text, responses, shown, answers, strict=True)
        ]
        before, verdicts = read_counts(self.judge)[NO_REPLY], ask_judge(self.judge, cases)
        if not any(verdicts) and read_counts(self.judge)[NO_REPLY] > before:
            raise RuntimeError(
                f"The judge replies no more: {read_fault(self.judge) or 'see the warning above'}. The same command "
                "continues from the last checkpoint. If the budget is spent, raise max_calls or max_tokens."
            )
        rewards = [
            verdict and (verdict.scores.get(self.aspect) if self.aspect else verdict.score) for verdict in verdicts
        ]
        self.rewarded |= any(reward is not None for reward in rewards)
        if not self.rewarded:
            known = ", ".join(sorted({aspect for verdict in verdicts if verdict for aspect in verdict.scores}))
            raise ValueError(
                f"No response of the first batch has a reward: the judge scores {known or 'none of them'}, aspect is "
                f"{self.aspect!r}. Take another judge, aspect, or prompts."
            )
        return rewards


def as_dataset(prompts: list[Prompt]) -> Dataset:
    chat = List({"role": Value("string"), "content": Value("string")})
    texts = {"text": Value("string"), "answers": List(Value("string"))}
    columns = {
        "prompt": [[{"role": "user", "content": prompt.text}] for prompt in prompts],
        "text": [prompt.text for prompt in prompts],
        "answers": [list(prompt.answers) for prompt in prompts],
        "images": [prompt.encoded_images for prompt in prompts],
    }
    dataset = Dataset.from_dict(columns, Features({"prompt": chat, **texts, "images": List(Image())}))
    return dataset if any(prompt.images for prompt in prompts) else dataset.remove_columns("images")


def leave_out_long(prompts: list[Prompt], check: RecordCheck) -> list[Prompt]:
    """The prompts after which the decoder has room for a completion; says how many there are not."""
    short, reason = [], ""
    for prompt in prompts:
        try:
            question = record("", [*prompt.images, prompt.text], [])
            check({**question, "messages": question["messages"][:1]})
            short.append(prompt)
        except BadRow as error:
            reason = str(error)
    if not short:
        raise ValueError(f"No prompt can be used. With max_completion_length, the last is {reason}.")
    if reason:
        print(f"{len(prompts) - len(short)} prompts are left out. With max_completion_length, the last is {reason}.")
    return short


def main(script: ScriptArguments, training: GRPOConfig, arguments: ModelConfig) -> None:
    # Dataset
    if script.prompts:
        prompts = list(read_prompts(script.prompts))
    else:
        prompts = list(islice(sample_prompts(script.tasks, training.seed), script.num_prompts))
    draw = prompts[0].draw
    if any(prompt.draw != draw for prompt in prompts):
        got = script.prompts or ", ".join(script.tasks)
        raise ValueError(f"tasks or prompts must all ask for drawings, or all for answers; got {got}.")
    # No guidance unless it is set: trl computes the probabilities of the model without guidance.
    mode = {"generation_mode": "image" if draw else "text", "guidance_scale": 1.0}
    training.generation_kwargs = {**mode, **(training.generation_kwargs or {})}
    if is_finished(training, script, arguments):
        return
    choose_precision(training)

    # Model
    model, processor = load_for_training(arguments)
    rates = choose_trained_parts(model, script.train, training.learning_rate, arguments.use_peft)
    check_four_bit_training(model, True)
    prompts = leave_out_long(prompts, RecordCheck(model, processor, training.max_completion_length))
    if draw:
        forbid_words(model)

    # Judge
    judge = make_judge(
        script.judge,
        script.judge_options,
        lambda: load(model.name_or_path, arguments.model_revision),
        cache=Path(training.output_dir) / "replies.jsonl",
    )

    # Training
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=JudgeReward(judge, model, processor, draw, script.aspect),
        args=training,
        train_dataset=as_dataset(prompts),
        processing_class=processor,
        peft_config=make_lora_config(model, arguments, last_norm=script.norm_learning_rate > 0, rates=rates),
        callbacks=[Curves(), SkipUnusedParts(), NoteTrainedParts(rates)],
    )
    complete_adapter(trainer.model)
    if script.norm_learning_rate > 0:
        trainer.optimizer_cls_and_kwargs = make_norm_optimizer(training, script.norm_learning_rate, rates)
    elif script.train:
        trainer.optimizer_cls_and_kwargs = make_optimizer(training, rates)
    print(describe_trained(trainer.model, rates))
    train_and_save(trainer, script, arguments)


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
    set_training_defaults(parser)
    run_script(main, parser)
