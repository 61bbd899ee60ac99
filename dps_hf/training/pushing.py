"""Pushes a model to the Hub during a training (`push_to_hub: true`), without paths of this machine.

The trainer's own push uploads all of `output_dir`, in which `settings.json`, `skipped.jsonl`, `training_args.bin` and
the logs of trackers hold local paths. This one uploads what loading needs, as [`~dps_hf.hub.push.push`] does, and a
card.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from dps_hf.hub.push import push


STATE = "trainer_state.json"
STRATEGIES = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: "checkpoint-{step}"}


class PushToHub(TrainerCallback):
    """Pushes each checkpoint as `hub_strategy` says, in place of the trainer.

    A push during training that fails is reported, and the training goes on.

    Args:
        trainer: one with `push_to_hub`, which is switched off in its arguments.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        trainer.args.push_to_hub = False
        self.api = HfApi(token=trainer.args.hub_token)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if not state.is_world_process_zero or args.hub_strategy == HubStrategy.END:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        message = f"Training in progress, step {state.global_step}"
        try:
            self._push(checkpoint, message)
            if args.hub_strategy in STRATEGIES:
                self._push_checkpoint(
                    checkpoint, STRATEGIES[args.hub_strategy].format(step=state.global_step), message + ", checkpoint"
                )
        except (ValueError, OSError) as error:
            print(f"Step {state.global_step} is not pushed: {error}")

    def push_at_end(self) -> None:
        """Pushes the model in `output_dir`.

        Raises:
            ValueError, PermissionError, ConnectionError: as [`~dps_hf.hub.push.push`].
        """
        if self.trainer.is_world_process_zero():
            self._push(Path(self.trainer.args.output_dir), "End of training")

    def _push(self, folder: Path, message: str) -> None:
        args, name = self.trainer.args, self.trainer.hub_model_id
        assert name is not None  # the trainer has made the repository
        push(
            folder, name, self._write_card(name), exist_ok=True, message=message, api=self.api,
            revision=args.hub_revision, needs_base=False,
        )  # fmt: skip

    def _push_checkpoint(self, checkpoint: Path, folder: str, message: str) -> None:
        """Pushes what a training needs to go on, beside the weights."""
        name, revision = self.trainer.hub_model_id, self.trainer.args.hub_revision
        assert name is not None
        state = json.loads((checkpoint / STATE).read_text()) | {"best_model_checkpoint": None}
        self.api.upload_folder(
            repo_id=name,
            folder_path=checkpoint,
            path_in_repo=folder,
            commit_message=message,
            revision=revision,
            ignore_patterns=["README.md", "training_args.bin", "adapter_config.json", STATE],
        )
        config = checkpoint / "adapter_config.json"
        if config.exists():
            cleaned = json.loads(config.read_text()) | {"base_model_name_or_path": find_base(self.trainer.model)}
            self._upload_json(f"{folder}/{config.name}", cleaned, message)
        self._upload_json(f"{folder}/{STATE}", state, message)

    def _upload_json(self, path: str, content: dict[str, Any], message: str) -> None:
        self.api.upload_file(
            path_or_fileobj=(json.dumps(content, indent=2) + "\n").encode(),
            path_in_repo=path,
            repo_id=str(self.trainer.hub_model_id),
            commit_message=message,
            revision=self.trainer.args.hub_revision,
        )

    def _write_card(self, name: str) -> ModelCard:
        """The trainer's card, in which a base model is named only if it is on the Hub."""
        self.trainer.create_model_card(model_name=name.rpartition("/")[2])
        path, base = Path(self.trainer.args.output_dir) / "README.md", find_base(self.trainer.model)
        card = ModelCard.load(path)
        card.data.base_model = base
        path.write_text(card.content, encoding="utf-8")
        return card


def find_base(model: Any) -> str | None:
    """The name of the model that this one was trained from, `None` if it is a folder of this machine."""
    name = model.config._name_or_path
    return None if not name or Path(name).exists() or Path(name).is_absolute() else name
