"""A page, made with Gradio, to draw, to describe pictures and to reason, and to vote on the results."""

import html
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from PIL import Image
from transformers import TextIteratorStreamer

from dps_hf.inference import Answer, ask, draw, load
from dps_hf.judges.votes import Votes
from dps_hf.model.image_processing_dps import open_picture
from dps_hf.serving.client import Client, ServerError


LETTERS = "ABCDEFGH"  # names of the drawings of one prompt
UP, DOWN = "👍 Good", "👎 Bad"
CSS = "#drawings img { image-rendering: pixelated; }"


class LocalModel:
    """A model in this process."""

    def __init__(self, path: str):
        self.model, self.processor = load(path)

    def draw(self, prompt: str, count: int) -> list[Image.Image]:
        return draw(self.model, self.processor, [prompt], num_return_sequences=count)

    def ask(self, question: str, picture: Image.Image | None, think: bool) -> Iterator[Answer]:
        """Yields the answer as it grows; the last one is complete."""
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        pictures = None if picture is None else [picture]
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(ask, self.model, self.processor, [question], pictures, think, streamer=streamer)
            whole.add_done_callback(lambda _: streamer.end())  # an error, too, ends the stream
            text = "<think>" if think else ""
            for piece in streamer:
                text += piece
                yield Answer(*self.processor.split_thinking(text))
            yield whole.result()[0]


class ServedModel:
    """The same model on a server, which may start after the page."""

    def __init__(self, url: str, checkpoint: str):
        self.url, self.checkpoint = url, checkpoint

    @cached_property
    def client(self) -> Client:
        return Client(self.url, self.checkpoint)

    def draw(self, prompt: str, count: int) -> list[Image.Image]:
        client = self.client
        with ThreadPoolExecutor(count) as pool:  # servers draw several at a time
            return list(pool.map(lambda _: client.draw(prompt), range(count)))

    def ask(self, question: str, picture: Image.Image | None, think: bool) -> Iterator[Answer]:
        """Yields the answer as it grows; the last one is complete."""
        return self.client.ask_stream(question, [] if picture is None else [picture], think)


Model: TypeAlias = LocalModel | ServedModel


def draw_tab(model: Model, votes: Votes) -> None:
    prompt = gr.Textbox(label="What to draw", placeholder="a big red heart", submit_btn="Draw")
    count = gr.Slider(1, len(LETTERS), value=4, step=1, label="Drawings")
    gr.Markdown("Click on a drawing to vote on it.")
    gallery = gr.Gallery(
        show_label=False,
        elem_id="drawings",
        columns=4,
        height=260,
        allow_preview=False,
        format="png",
        interactive=False,
    )
    with gr.Row():
        up, down = gr.Button(UP), gr.Button(DOWN)
        better = gr.Button("A is better")
    shown, selected = gr.State(), gr.State(0)

    def on_draw(prompt: str, count: int):
        prompt = require(prompt, "Write what to draw.")
        with show_errors():
            drawings = model.draw(prompt, int(count))
        captioned = list(zip(drawings, LETTERS))
        return gr.Gallery(captioned, selected_index=0), {"prompt": prompt, "drawings": drawings}, 0, name(0)

    def on_select(event: gr.SelectData):
        return event.index, name(event.index)

    def name(index: int) -> str:
        return f"{LETTERS[index]} is better"

    def on_thumb(thumb: str):
        def vote(shown: dict | None, selected: int) -> None:
            shown = require(shown, "Draw something first.")
            votes.thumb(shown, shown["drawings"][selected], thumb)
            gr.Info(f"Noted: thumb {thumb} for {LETTERS[selected]}.")

        return vote

    def on_better(shown: dict | None, selected: int) -> None:
        shown = require(shown, "Draw something first.")
        drawings = shown["drawings"]
        others = [drawing for drawing in drawings if drawing.tobytes() != drawings[selected].tobytes()]
        for other in require(others, "Draw two or more that differ to choose among them."):
            votes.choice(shown, drawings[selected], other)
        gr.Info(f"Noted: {LETTERS[selected]} is better.")

    prompt.submit(on_draw, [prompt, count], [gallery, shown, selected, better], concurrency_id="model")
    gallery.select(on_select, None, [selected, better])
    up.click(on_thumb("up"), [shown, selected], None)
    down.click(on_thumb("down"), [shown, selected], None)
    better.click(on_better, [shown, selected], None)


def ask_tab(model: Model, votes: Votes, think: bool) -> None:
    with gr.Row():
        picture = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Picture", height=260)
        with gr.Column():
            value = "" if think else "Describe the picture."
            placeholder = "How many circles are there?" if think else "What is this?"
            question = gr.Textbox(label="Question", value=value, placeholder=placeholder, submit_btn="Ask")
            with gr.Accordion("Reasoning", open=False, visible=think):
                thinking = gr.Textbox(label="Steps", lines=3)
            answer = gr.Textbox(label="Answer")
            with gr.Row():
                up, down = gr.Button(UP), gr.Button(DOWN)
    # Only the path: `open_picture` says in a sentence what is wrong with a file that is no picture.
    picture.preprocess = lambda upload: upload and upload.path
    shown = gr.State()

    def on_ask(path: str | None, question: str):
        question = require(question, "Write a question.")
        if not think:
            path = require(path, "Choose a picture first.")
        try:
            opened = open_picture(Path(path)) if path else None
        except ValueError:  # its message names a folder of this machine
            raise refuse(f"{Path(str(path)).name} is no picture that can be read. Save it as PNG or JPEG.") from None
        with show_errors():
            for grown in model.ask(question, opened, think):
                yield grown.thinking, grown.text, None
        steps = f"<think>{grown.thinking}</think>" if think else ""
        text = grown.text or "(It never came to an answer.)"
        yield grown.thinking, text, {"prompt": question, "picture": opened, "response": steps + grown.text}

    def on_thumb(thumb: str):
        def vote(shown: dict | None) -> None:
            shown = require(shown, "Ask something first.")
            votes.thumb(shown, require(shown["response"], "There is no answer to vote on."), thumb)
            gr.Info(f"Noted: thumb {thumb}.")

        return vote

    question.submit(on_ask, [picture, question], [thinking, answer, shown], concurrency_id="model")
    up.click(on_thumb("up"), [shown], None)
    down.click(on_thumb("down"), [shown], None)


def require(value: Any, sentence: str) -> Any:
    """Returns the value, or shows the sentence to the person who left it empty."""
    value = value.strip() if isinstance(value, str) else value
    if not value:
        raise refuse(sentence)
    return value


def refuse(sentence: str) -> gr.Error:
    """An error that is shown on the page, and not printed."""
    return gr.Error(html.escape(sentence), print_exception=False)


@contextmanager
def show_errors() -> Iterator[None]:
    """Shows errors of the model and of the server as a sentence on the page, without a traceback."""
    try:
        yield
    except (ValueError, ServerError) as error:
        raise refuse(str(error)) from None


def build_page(model: Model, votes: Votes) -> gr.Blocks:
    with gr.Blocks(title="DPS", analytics_enabled=False) as blocks:
        gr.Markdown("# DPS\nA small model that draws, describes and reasons. Votes are kept, with words and pictures.")
        with gr.Tab("Draw"):
            draw_tab(model, votes)
        with gr.Tab("Describe"):
            ask_tab(model, votes, think=False)
        with gr.Tab("Reason"):
            ask_tab(model, votes, think=True)
    return blocks
