"""Group relative policy optimisation of a DPS, with a judge's scores as rewards, of answers or of drawings.

python examples/grpo.py --config examples/recipes/nano_grpo.yaml
accelerate launch examples/grpo.py --config examples/recipes/nano_grpo.yaml

https://huggingface.co/papers/2402.03300. Killed at any moment, the same command goes on from the last checkpoint to the
same losses.
"""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset, Features, Image, List, Value
from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser

from dps_hf.data.record import words_of
from dps_hf.inference import load
from dps_hf.judges.openai import NO_REPLY
from dps_hf.judges.resolve import JUDGES, check_judge, counted, last_fault, named_judge
from dps_hf.judges.verdict import Case, Judge
from dps_hf.preferences.responses import Prompt, read_prompts, task_prompts
from dps_hf.training.curves import Curves
from dps_hf.training.last_norm import make_norm_optimizer
from dps_hf.training.loading import check_four_bit_training, forbid_words, load_for_training
from dps_hf.training.resuming import is_finished, train_and_save
from dps_hf.training.trained_parts import SkipUnusedParts, check_trained, make_lora_config


@dataclass
class ScriptArguments:
    """
    tasks: task to weight, either all of drawings or all of answers.
    prompts: in place of the tasks' questions, a text file with a prompt for a drawing on each line, or a folder of records
        that `datasets` saved, whose last questions are asked and whose answers "exact" takes as the right ones. Drawings of
        anything but scenes and emoji have no reward from it: take another judge.
    num_prompts: how many different prompts.
    judge: "exact", "openai", or "self", which is the model as it was before.
    judge_options: arguments of `OpenAIJudge`, `model` and `rubric` at least; replies are kept in the output folder.
    aspect: the score that is the reward; left out, the mean of all.
    vision_tower: whether the vision tower is trained, too.
    norm_learning_rate: of the logarithm of the scale of the decoder's last norm, which is how sure the model is of its tokens; 0 leaves
        it alone.
    """

    tasks: dict = field(default_factory=lambda: {"dps_hf.nano.tasks.scenes_t2i": 1})
    prompts: Path | None = None
    num_prompts: int = 1000
    judge: str = field(default="exact", metadata={"choices": JUDGES})
    judge_options: dict = field(default_factory=dict)
    aspect: str | None = None
    vision_tower: bool = False
    norm_learning_rate: float = 0.0

    def __post_init__(self):
        check_judge(self.judge, self.judge_options)  # of what comes from a file no choices are checked


class JudgeReward:
    """A judge as a reward function of trl: a score from 0 to 1, None where there is none.

    Raises RuntimeError where a server replies no more, and ValueError where nothing of the first batch has a reward.
    """

    def __init__(self, judge: Judge, model, processor, draw: bool, aspect: str | None = None):
        self.__name__ = "reward"
        self.judge, self.model, self.processor, self.draw, self.aspect = judge, model, processor, draw, aspect
        self.rewarded = False

    def __call__(self, prompts, completions, completion_ids, answers, text, images=None, **kwargs):
        responses = [words_of(completion) for completion in completions]
        if self.draw:
            tokens = torch.tensor(completion_ids, device=self.model.device)  # all whole drawings: of one length
            pixels = self.model.decode_image_tokens(tokens)
            responses = self.processor.post_process_multimodal_output(pixels, generation_mode="image")
        shown = images or [()] * len(responses)
        cases = [
            Case(words, response, tuple(pictures or ()), tuple(right))
            for words, response, pictures, right in zip(text, responses, shown, answers, strict=True)
        ]
        before, verdicts = counted(self.judge, NO_REPLY), self.judge(cases)
        if not any(verdicts) and counted(self.judge, NO_REPLY) > before:
            raise RuntimeError(
                f"The judge replies no more: {last_fault(self.judge) or 'see the warning above'}. The same command goes on "
                "from the last checkpoint, with larger max_calls or max_tokens in judge_options if they were spent."
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


def main(script: ScriptArguments, training: GRPOConfig, arguments: ModelConfig) -> None:
    # Dataset
    if script.prompts:
        prompts = list(read_prompts(script.prompts))
    else:
        prompts = list(islice(task_prompts(script.tasks, training.seed), script.num_prompts))
    draw = prompts[0].draw
    if any(prompt.draw != draw for prompt in prompts):
        got = script.prompts or ", ".join(script.tasks)
        raise ValueError(f"tasks, or prompts, must all be of drawings or all of answers; got {got}.")
    # Unless it is asked for, no guidance: what is drawn must be what the model would draw by itself.
    mode = {"generation_mode": "image" if draw else "text", "guidance_scale": 1.0}
    training.generation_kwargs = {**mode, **(training.generation_kwargs or {})}
    if is_finished(training, script, arguments):
        return

    # Model
    model, processor = load_for_training(arguments, script.vision_tower)
    check_four_bit_training(model, True)
    if draw:
        forbid_words(model)

    # Judge
    replies = {"cache": Path(training.output_dir) / "replies.jsonl", **script.judge_options}
    judge = named_judge(script.judge, replies, lambda: load(model.name_or_path, arguments.model_revision))

    # Training
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=JudgeReward(judge, model, processor, draw, script.aspect),
        args=training,
        train_dataset=as_dataset(prompts),
        processing_class=processor,
        peft_config=make_lora_config(model, arguments, script.vision_tower, script.norm_learning_rate > 0),
        callbacks=[Curves(), SkipUnusedParts()],
    )
    if script.norm_learning_rate > 0:
        trainer.optimizer_cls_and_kwargs = make_norm_optimizer(training, script.norm_learning_rate)
    print(f"{len(check_trained(trainer.model, script.vision_tower))} tensors are trained")
    train_and_save(trainer, script, arguments)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, GRPOConfig, ModelConfig)).parse_args_and_config())
