"""README, the guide and the other pages: their Python runs and prints what they say, and what they name exists."""

import ast
import contextlib
import functools
import importlib
import inspect
import io
import json
import pkgutil
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import yaml
from PIL import Image

from dps_hf.data.record import validate
from dps_hf.judges.verdict import Case


ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "examples" / "recipes"
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    *(str(page.relative_to(ROOT)) for page in sorted(RECIPES.glob("*/README.md"))),
]
NEEDS_NETWORK = ("me/my-dps", "http://", "SmolLM2")
MADE_BY_THE_READER = (
    "runs/",
    "outputs/",
    "my_",
    "mine",
    "votes.jsonl",
    "picture.png",
    "cat.png",
    "checkpoint-",
    ".venv",
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_blocks(page: str) -> list[tuple[str, str]]:
    """The Python blocks of a page and what each prints: the text block after it, or comments behind `print`."""
    found = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", read(page), re.DOTALL)
    comments = re.compile(r"^print\(.*\)  # (.*\n)", re.MULTILINE)
    return [(code, printed or "".join(comments.findall(code))) for code, printed in found]


def commands(page: str) -> list[str]:
    """The commands of a page: those in its shell blocks, and those between backticks in its text."""
    blocks = re.findall(r"```bash\n(.*?)```", read(page), re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    lines += [code for code in re.findall(r"`([^`]+)`", prose) if re.match(r"(python|make|sh|accelerate) ", code)]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


@functools.cache
def options(script: str) -> frozenset[str]:
    """The options in the help of a script or module."""
    if script == "examples/app.py":  # gradio does not belong to what tests need
        return frozenset(re.findall(r"^    (\w+): .* = ", read(script), re.MULTILINE))
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [script, "--help"]),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit),
    ):
        if script.endswith(".py"):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__")
    return frozenset(re.findall(r"--(\w+)", printed.getvalue())) | {"config"}


@pytest.fixture
def readers_folder(tmp_path, monkeypatch):
    """A folder with a picture, from which the paths of the pages can be reached."""
    for name in ("dps_hf", "examples", "model_cards"):
        (tmp_path / name).symlink_to(ROOT / name)
    Image.new("RGB", (80, 60), "black").save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, namespace: dict) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "page", "exec"), namespace)
    return printed.getvalue()


def test_the_python_of_the_readme_prints_what_it_says(readers_folder):
    for code, expected in python_blocks("README.md"):
        if not any(name in code for name in NEEDS_NETWORK):
            assert run(code, {}) == expected


@pytest.mark.slow
def test_the_commands_of_the_readme_train_merge_and_measure(readers_folder):
    for folder in ("my_pictures", "my_held_out_pictures"):
        (readers_folder / folder).mkdir()
        names = ("red", "blue", "green", "black")
        for name in names:
            Image.new("RGB", (80, 60), name).save(readers_folder / folder / f"{name}.png")
        rows = "\n".join(f"{name}.png,a {name} flag" for name in names)
        (readers_folder / folder / "metadata.csv").write_text(f"file_name,text\n{rows}\n")
    shorter = {"sft.py": ["--max_steps", "1"], "evaluate.py": ["--items", "2"]}
    scripts = [shlex.split(command)[1:] for command in commands("README.md") if command.startswith("python examples/")]
    assert [Path(words[0]).name for words in scripts] == ["sft.py", "merge_adapter.py", "evaluate.py"]
    for words in scripts:
        subprocess.run([sys.executable, *words, *shorter.get(Path(words[0]).name, [])], check=True)
    assert json.loads(Path("outputs/mine.json").read_text())["drawings"]


def test_the_python_of_the_guide_runs(readers_folder):
    pytest.importorskip("bitsandbytes")
    namespace: dict = {}
    for code, expected in python_blocks("examples/README.md"):
        if not any(name in code for name in (*NEEDS_NETWORK, "compile_config")):  # a compiler takes minutes
            assert run(code, namespace) == expected
    red, half = Image.new("RGB", (8, 8), (225, 25, 35)), Image.new("RGB", (8, 8), "blue")
    half.paste(red, (4, 0))
    verdicts = namespace["redness"]([Case("", red), Case("", half)])
    assert [verdict.score for verdict in verdicts] == [1.0, 0.5]
    for split in ("train", "validation"):
        validate(namespace["sums"](np.random.default_rng(0), split))
    subject = SimpleNamespace(items=4, rng=lambda stream: np.random.default_rng(0), ask=lambda questions: ["?"] * 4)
    assert namespace["addition"](subject)["exact"]["value"] == 0


@pytest.mark.parametrize("page", ["README.md", "examples/README.md"])
def test_calls_that_need_the_network_have_arguments_that_exist(page):
    for code, _ in python_blocks(page):
        tree = ast.parse(code)
        known = {
            alias.name: getattr(importlib.import_module(node.module), alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module.startswith("dps_hf")
            for alias in node.names
        }
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            name = ast.unparse(call.func)
            called = pkgutil.resolve_name(name) if name.startswith("dps_hf.") else known.get(name)
            if called:
                inspect.signature(called).bind(*call.args, **{keyword.arg: None for keyword in call.keywords})


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_scripts_targets_recipes_and_options_that_exist(page):
    targets = re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE)
    for command in commands(page):
        words = [word for word in shlex.split(command) if "=" not in word]
        if words[0] == "accelerate":
            assert words[1:3] == ["launch", "--config_file"] and (ROOT / words[3]).is_file(), command
            words = ["python", *words[4:]]
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), command
        elif words[0] == "sh":
            assert (ROOT / words[1]).is_file(), command
        elif words[0] == "python":
            words = words[2:] if words[1] == "-m" else words[1:]
            assert words[0].startswith("dps_hf.") or (ROOT / words[0]).is_file(), command
            if given := {word[2:] for word in words if word.startswith("--") and word != "--help"}:
                assert given <= options(words[0]), command
            if "--config" in words:
                assert (ROOT / words[words.index("--config") + 1]).is_file(), command
        else:
            assert words[0] in ("git", "cd", "pip", "."), command


@pytest.mark.parametrize("page", PAGES)
def test_options_files_and_names_in_the_text_exist(page):
    prose = re.sub(r"```.*?```", "", read(page), flags=re.DOTALL)
    known = frozenset().union(
        *(options(f"examples/{name}.py") for name in ("sft", "build_preferences", "app", "evaluate"))
    )
    known |= options("dps_hf.serving.gguf")
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), link
    for code in re.findall(r"`([^`]+)`", prose):
        for option in re.findall(r"(?<!\S)--(\w+)", code) if code.startswith("--") else ():
            assert option in known, code
        if re.fullmatch(r"dps_hf(\.\w+)+", code):
            pkgutil.resolve_name(code)
        elif re.fullmatch(r"[\w./-]+(/|\.py|\.yaml|\.md|\.json|\.cfg|\.txt|\.sh)", code) and not code.startswith(
            MADE_BY_THE_READER
        ):
            places = [ROOT, ROOT / "examples", ROOT / "model_cards", *RECIPES.iterdir()]
            assert any((place / code).exists() for place in places), code


def test_the_file_tree_of_the_readme_exists():
    folders: dict[int, Path] = {}
    tree = re.search(r"## Files\n\n```text\n(.*?)```", read("README.md"), re.DOTALL)
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth] = folders.get(depth - 1, ROOT) / line.split()[0]
        assert folders[depth].exists(), line


@pytest.mark.parametrize("folder", ["nano", "smol", "smollm2_360m", "smollm2_1.7b"])
def test_recipes_have_only_fields_of_the_script_that_their_page_names(folder):
    rows = re.findall(r"^\| `([\w.]+)` \| `([\w./]+)` \|", read(f"examples/recipes/{folder}/README.md"), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(path.name for path in (RECIPES / folder).glob("*.yaml"))
    for name, script in rows:
        fields = yaml.safe_load((RECIPES / folder / name).read_text(encoding="utf-8"))
        assert set(fields) <= options(script), name


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "model_cards/dps-nano.md"])
def test_pages_name_no_commit_and_no_weights(page):
    assert not re.search(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b", read(page))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_install_installs_what_the_scripts_need_and_runs_nothing():
    command = ["make", "--dry-run", "install", "VENV=nowhere"]
    written = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "--editable '.[train]'" in written and "examples/" not in written and "pytest" not in written
    helped = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "make install" in helped
