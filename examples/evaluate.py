"""Measures a DPS with evaluations of your own or of dps-nano, each figure with its 95 % confidence interval.

python examples/evaluate.py --config examples/recipes/nano/evaluate.yaml --output outputs/shipped.json
python examples/evaluate.py --model runs/nano --output outputs/nano.json --tasks dps_hf.nano.evaluation.scenes_t2i
python examples/evaluate.py --model me/my-dps --tasks my_evaluations.describes_cats --output outputs/cats.json

An evaluation is a function `(subject) -> dict[str, Figure]` (`dps_hf.evaluation`), given by its dotted path. Finished
evaluations are kept in the output: if the command is interrupted, it continues with the next one. `--fresh` runs them
again.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import GenerationConfig
from trl import TrlParser

from dps_hf import NANO
from dps_hf.command_line import run_script
from dps_hf.evaluation.runner import print_figures, run_evaluations
from dps_hf.evaluation.subject import Subject
from dps_hf.inference import load
from dps_hf.resolve import resolve


@dataclass
class ScriptArguments:
    """
    tasks: dotted paths of evaluations, or of modules whose `EVALUATIONS` lists several.
    model: folder or name of the model.
    output: JSON file for the figures.
    sheet: dotted path of a function `(subject) -> Image` that draws a page to look at. It is saved beside the figures,
        as PNG.
    items: the number of items that a figure comes from, if there are as many.
    guidance, temperature, top_k: of the drawings, by default those of the model's generation config; temperature 0 is
        greedy.
    batch_size: the number of items in one call of `generate`.
    seed: chooses the items and the random numbers of sampling.
    fresh: runs evaluations again that the output already holds.
    """

    tasks: list[str] = field(default_factory=list)
    model: str = NANO
    output: Path = Path("outputs/figures.json")
    sheet: str | None = None
    items: int = 500
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    batch_size: int = 48
    seed: int = 0
    fresh: bool = False

    def __post_init__(self):
        if self.items < 1:
            raise ValueError(f"items must be 1 or more; got {self.items}.")


def choose_sampling(script: ScriptArguments, config: GenerationConfig) -> dict:
    """Every setting of sampling, written out so that a later change of a default changes no figure."""
    given = {"guidance_scale": script.guidance, "temperature": script.temperature, "top_k": script.top_k}
    chosen = {"guidance_scale": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0}  # the library's defaults
    chosen |= {name: getattr(config, name) for name in chosen if getattr(config, name) is not None}
    chosen |= {name: value for name, value in given.items() if value is not None}
    if chosen["temperature"] == 0:
        return {"guidance_scale": chosen["guidance_scale"], "do_sample": False}
    return {**chosen, "do_sample": True}


def main(script: ScriptArguments) -> None:
    # Model
    model, processor = load(script.model)
    sampling = choose_sampling(script, model.generation_config)
    subject = Subject(model, processor, script.items, script.seed, sampling, script.batch_size)

    # Evaluations
    report = run_evaluations(subject, Path(script.model).name, script.tasks, script.output, script.fresh)
    print_figures(report)
    print(f"\nFigures: {script.output}")
    if script.sheet:
        path = script.output.with_suffix(".png")
        if script.fresh or not path.exists():
            resolve(script.sheet, "sheet")(subject).save(path)
        print(f"Drawings: {path}")


if __name__ == "__main__":
    run_script(main, TrlParser(ScriptArguments))
