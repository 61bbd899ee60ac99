"""Runs a script with FSDP2 on processes without GPUs, `accelerate launch` in front: fsdp_on_cpu.py SCRIPT ARGUMENTS.

accelerate 1.15 shards only what runs on accelerators, and falls back to DDP without a word: here it takes the
processes for such. torch itself shards over gloo. Exits with an error where nothing was sharded.
"""

import runpy
import sys

import accelerate.accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType


prepare_state, shard, sharded = PartialState.__init__, accelerate.accelerator.fsdp2_prepare_model, []


def pretend(self, *args, **kwargs):
    prepare_state(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_XPU


def note(*args, **kwargs):
    sharded.append(shard(*args, **kwargs))
    return sharded[-1]


PartialState.__init__ = pretend
accelerate.accelerator.fsdp2_prepare_model = note

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
if not any(type(parameter).__name__ == "DTensor" for model in sharded for parameter in model.parameters()):
    sys.exit("Nothing was sharded.")
