"""Aligns dps-nano with what a judge prefers: samples, judges, pairs and trains, and measures before and after.

python examples/nano/align.py --config examples/recipes/nano/align.yaml
python examples/nano/align.py --config examples/recipes/nano/align.yaml --experiments capitals_dpo

What is measured is asked in no step. If the command is interrupted, the same command continues; finished steps are not
run again. Several experiments may run at the same time in one work folder, except `scenes_t2i_kto`, which uses the
drawings of `scenes_t2i_dpo`.
"""

from dataclasses import replace
from pathlib import Path

from trl import TrlParser

from dps_hf.command_line import run_script
from dps_hf.nano.alignment import AlignmentArguments
from dps_hf.nano.alignment_report import run_experiments


def main(script: AlignmentArguments) -> None:
    run_experiments(replace(script, examples=Path(__file__).parents[1]))


if __name__ == "__main__":
    run_script(main, TrlParser(AlignmentArguments))
