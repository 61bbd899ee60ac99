"""Scripts that are run as steps of a longer work."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dps_hf.nano.steps import run_script


def test_a_script_runs_as_if_by_itself_and_says_where_it_failed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "assert __name__ == '__main__'\n"
        "open(sys.argv[1], 'w').write(f'{os.getpid()} {(torch.ones(999, 999) @ torch.ones(999, 999)).sum():.0f}')\n"
        "sys.exit(len(sys.argv) - 2)\n"
    )
    torch.ones(999, 999) @ torch.ones(999, 999)  # threads of this process are none of its
    run_script(script, tmp_path / "out")
    process, total = (tmp_path / "out").read_text().split()
    assert int(process) != os.getpid() and int(total) == pytest.approx(999**3, rel=1e-3)
    with pytest.raises(RuntimeError, match=r"script\.py .* more failed with 1"):
        run_script(script, tmp_path / "out", "more")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_script_ends_when_whoever_ran_it_is_killed(tmp_path):
    script, parent = tmp_path / "script.py", tmp_path / "parent.py"
    script.write_text(
        f"import os, time\nopen({str(tmp_path / 'id')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    parent.write_text(
        f"from dps_hf.nano.steps import run_script\nif __name__ == '__main__':\n    run_script({str(script)!r})\n"
    )
    process = subprocess.Popen([sys.executable, parent])
    wait_until(lambda: (tmp_path / "id").exists() and (tmp_path / "id").read_text())
    process.kill()
    process.wait()
    wait_until(lambda: not Path(f"/proc/{(tmp_path / 'id').read_text()}").exists())


def wait_until(happened, seconds=120):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)
