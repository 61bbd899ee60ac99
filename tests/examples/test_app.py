"""The page: its votes, its streaming, and a person before it in headless Chromium."""

import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from PIL import Image, ImageDraw
from scripted_server import scripted_server

import dps_hf
from dps_hf.inference import CODES
from dps_hf.judges.votes import read_votes


pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[app]'")

ROOT = Path(__file__).parents[2]
# A colour and a shape that never met in training: drawings of it differ, so that one can be better.
SEVERAL = "three small green stars"
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def app():
    return importlib.import_module("dps_hf.page")


@pytest.fixture(scope="module")
def local_model(app, saved_model):
    return app.LocalModel(saved_model)


def test_votes_are_read_back_with_their_pictures(app, tmp_path):
    votes = app.Votes(tmp_path / "deep" / "votes.jsonl")
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    votes.thumb({"prompt": "What is this?", "picture": red}, "<think>Red.</think>Röd.", "down")
    votes.thumb({"prompt": "a red square"}, red, "up")
    votes.choice({"prompt": "a red square"}, red, blue)
    read = read_votes(votes.path)
    assert [(case.prompt, verdict.scores) for case, verdict in read] == [
        ("What is this?", {"thumb": 0.0}),
        ("a red square", {"thumb": 1.0}),
        ("a red square", {"choice": 1.0}),
        ("a red square", {"choice": 0.0}),
    ]
    assert read[0][0].response == "<think>Red.</think>Röd." and read[0][0].images[0].tobytes() == red.tobytes()
    assert [case.response.tobytes() for case, _ in read[1:]] == [red.tobytes(), red.tobytes(), blue.tobytes()]
    assert not votes.path.with_suffix(".bad.jsonl").exists()


def test_a_vote_on_a_drawing_keeps_its_codes(app, local_model, tmp_path):
    votes = app.Votes(tmp_path / "votes.jsonl")
    drawings = local_model.draw("a red square", 2)
    for drawing, thumb in zip(drawings, ("up", "down")):  # which look alike: the image tokenizer is a random one
        votes.thumb({"prompt": "a red square"}, drawing, thumb)
    assert [case.response.info[CODES] for case, _ in read_votes(votes.path)] == [d.info[CODES] for d in drawings]


@pytest.mark.parametrize("think", [False, True])
def test_an_answer_grows_to_what_it_is_without_streaming(app, local_model, think):
    picture = Image.new("RGB", (20, 10), "red")
    [whole] = app.ask(local_model.model, local_model.processor, ["What?"], [picture], think)
    *grown, last = local_model.ask("What?", picture, think)
    assert last == whole
    assert len(grown) > 1
    texts = [answer.thinking + answer.text for answer in grown]
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(texts))


def test_words_that_are_tokens_of_the_model_end_the_stream_with_an_error(local_model):
    with pytest.raises(ValueError, match="<image>"):
        list(local_model.ask("What is an <image>?", None, False))


def test_a_server_may_stand_behind_the_page(app, saved_model, tiny_model):
    def reply(path, request):
        if path == "/v1/completions":
            return 200, {"choices": [{"index": 0, "text": "".join(f"<img_{code}>" for code in codes)}]}
        chunk = {"choices": [{"index": 0, "delta": {"content": "round</think>a circle"}}]}
        return 200, f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"

    codes = range(tiny_model.config.grid_size**2)
    with scripted_server() as server:
        server.reply = reply
        model = app.ServedModel(server.base_url, saved_model)
        drawings = model.draw("a circle", 3)
        assert [drawing.size for drawing in drawings] == [(tiny_model.config.drawing_size,) * 2] * 3
        assert list(model.ask("What is this?", drawings[0], True)) == [("round", "a circle")]


def test_a_dead_server_is_a_sentence_until_it_runs(app, saved_model):
    model = app.ServedModel("http://127.0.0.1:9/v1", saved_model)
    for request in (lambda: model.draw("a circle", 1), lambda: list(model.ask("What is this?", None, False))):
        with pytest.raises(app.gr.Error, match="cannot be reached, or broke off"), app.show_errors():
            request()


def test_the_space_names_the_page_and_a_version_of_gradio():
    card = SpaceCard.load(ROOT / "examples" / "space" / "README.md").data.to_dict()
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    assert card["sdk_version"].startswith("6.")


@pytest.fixture
def space(tmp_path):
    """The folder of a Space, as its README puts it together, and the page that runs there."""
    shutil.copytree(ROOT / "examples" / "space", tmp_path, dirs_exist_ok=True)
    shutil.copy(ROOT / "examples" / "app.py", tmp_path)
    (tmp_path / "dps_hf").symlink_to(Path(dps_hf.__file__).parent)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GRADIO_SERVER_NAME")
    }
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        env=environment | {"PYTHONUNBUFFERED": "1", "GRADIO_TEMP_DIR": str(tmp_path / "gradio")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Running on local URL:" in line:
            break
    else:
        pytest.fail("".join(lines)[-4000:])
    yield tmp_path, lines[-1].split()[-1], process.pid
    process.terminate()
    process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_person_draws_describes_reasons_and_votes(space, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    import psutil

    folder, url, pid = space
    listening = {c.laddr.ip for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}

    scene = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(scene).ellipse((8, 8, 32, 32), fill=(30, 60, 220))
    scene.save(tmp_path / "circle.png")
    (tmp_path / "junk.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")

    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(60_000)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)

        page.get_by_role("button", name="Draw", exact=True).last.click()
        page.get_by_text("Write what to draw.").wait_for()
        page.get_by_role("button", name="Good").first.click()
        page.get_by_text("Draw something first.").wait_for()
        page.get_by_label("What to draw").fill("draw an <image>")
        page.get_by_label("What to draw").press("Enter")
        page.get_by_text("<image>").last.wait_for()
        page.get_by_label("What to draw").fill(SEVERAL)
        page.get_by_label("What to draw").press("Enter")
        drawings = page.locator("#drawings")
        drawings.get_by_role("button").filter(has_text="B").click()
        page.get_by_role("button", name="B is better").wait_for()
        page.get_by_role("button", name="Good").first.click()
        page.get_by_text("Noted: thumb up for B.").wait_for()
        page.get_by_role("button", name="B is better").click()
        page.get_by_text("Noted: B is better.").wait_for()
        assert drawings.locator("img").count() == 4
        page.screenshot(path=tmp_path / "draw.png")

        def open_tab(name):
            page.get_by_role("tab", name=name).click()
            return page.locator("[role=tabpanel]:visible")

        describe = open_tab("Describe")
        describe.get_by_role("button", name="Ask").click()
        page.get_by_text("Choose a picture first.").wait_for()
        describe.locator("input[type=file]").set_input_files(tmp_path / "junk.png")
        describe.locator("img").wait_for(state="attached")
        describe.get_by_role("button", name="Ask").click()
        page.get_by_text("junk.png is no picture that can be read. Save it as PNG or JPEG.", exact=True).wait_for()

        page.reload()
        describe = open_tab("Describe")
        describe.locator("input[type=file]").set_input_files(tmp_path / "circle.png")
        describe.locator("img").wait_for(state="attached")
        describe.get_by_role("button", name="Ask").click()
        wait_for_value(describe.get_by_label("Answer"), "circle")
        describe.get_by_role("button", name="Bad").click()
        page.get_by_text("Noted: thumb down.").wait_for()
        page.screenshot(path=tmp_path / "describe.png")

        reason = open_tab("Reason")
        reason.locator("input[type=file]").set_input_files(tmp_path / "circle.png")
        reason.locator("img").wait_for(state="attached")
        reason.get_by_label("Question").fill("What colour is the circle?")
        reason.get_by_role("button", name="Ask").click()
        wait_for_value(reason.get_by_label("Answer"), "")
        steps = reason.get_by_label("Steps")
        assert not steps.is_visible(), "the reasoning is folded"
        reason.get_by_role("button", name="Reasoning").click()
        steps.wait_for(state="visible")
        assert "circle" in steps.input_value()
        page.screenshot(path=tmp_path / "reason.png")
        browser.close()

    outside = [name for name in asked if not name.startswith((url, "data:", "blob:"))]
    assert not outside, "the page loads nothing from elsewhere"
    path = folder / "outputs" / "votes" / "votes.jsonl"
    (drawn, up), *choices, (described, down) = read_votes(path)
    assert (drawn.prompt, up.scores, drawn.response.size) == (SEVERAL, {"thumb": 1.0}, (64, 64))
    assert choices and [verdict.scores["choice"] for _, verdict in choices] == [1.0, 0.0] * (len(choices) // 2)
    assert all(case.response.tobytes() == drawn.response.tobytes() for case, _ in choices[::2]), "B is the better one"
    assert (described.prompt, down.scores) == ("Describe the picture.", {"thumb": 0.0})
    assert described.images[0].tobytes() == scene.tobytes() and "circle" in described.response
    assert all(json.loads(line) for line in path.read_text().splitlines())


def wait_for_value(box, part: str, seconds: float = 60) -> None:
    """Until the box holds a text with this part."""
    end = time.monotonic() + seconds
    while not (value := box.input_value()) or part not in value:
        assert time.monotonic() < end, f"{part!r} never came; the box holds {value!r}"
        time.sleep(0.1)
