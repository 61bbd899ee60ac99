import base64
import json
from io import BytesIO

import pytest
import torch
from PIL import Image

from dps_hf.inference import CODES as DRAWING_CODES
from dps_hf.serving import client as client_module
from dps_hf.serving.client import Client, ServerError


CODES = [3, 0, 15, 7]
DRAWN = "".join(f"<img_{code}>" for code in CODES)


def completion(text: str, **fields) -> tuple[int, dict]:
    return 200, {"id": "1", "object": "text_completion", "choices": [{"index": 0, "text": text, **fields}]}


def completions(*texts: str) -> tuple[int, dict]:
    choices = [{"index": index, "text": text} for index, text in enumerate(texts)]
    return 200, {"id": "1", "object": "text_completion", "choices": choices[::-1]}  # servers give them in any order


def chat_completion(text: str | None) -> tuple[int, dict]:
    return 200, {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": text}}]}


def streamed(*pieces: str) -> tuple[int, str]:
    """A chat completion as servers send it piece by piece."""
    chunks = [{"id": "1", "choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    return 200, "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, {"choices": []}]) + "data: [DONE]\n\n"


@pytest.fixture
def make_client(server, checkpoint):
    """A client of the scripted server, which calls itself `owner`."""

    def make(owner: str = "llamacpp") -> Client:
        server.owner = owner
        return Client(server.base_url, checkpoint)

    return make


@pytest.mark.parametrize(
    ("owner", "name"),
    [("llamacpp", "llama-server"), ("me", "llama_cpp.server"), ("vllm", "vLLM"), ("Hub", "transformers serve")],
)
def test_servers_are_told_apart(owner, name, make_client):
    assert make_client(owner).server == name


@pytest.mark.parametrize("owner", ["llamacpp", "me", "vllm"])
def test_a_drawing_may_hold_nothing_but_codes(owner, make_client, server, token_ids):
    server.reply = lambda path, request: completion(DRAWN)
    assert make_client(owner).draw_codes("a heart", temperature=0.0) == CODES
    ((path, request),) = server.requests
    assert path == "/v1/completions"
    assert request["prompt"] == "<|im_start|>user\na heart<|im_end|>\n<|im_start|>assistant\n<begin_of_image>"
    codes = [token_ids["<img_0>"] + code for code in range(16)]
    if owner == "vllm":  # which ignores logit_bias where it decodes speculatively
        assert request["allowed_token_ids"] == codes
    else:
        assert request["logit_bias"] == {str(code): 100 for code in codes}
    assert (request["max_tokens"], request["temperature"], request["repeat_penalty"]) == (4, 0.0, 1.0)


def test_vllm_draws_several_in_one_request(make_client, server):
    server.reply = lambda path, request: completions(*["".join(f"<img_{i}>" for _ in CODES) for i in range(5)])
    assert make_client("vllm").draw_codes_several("a heart", 5, seed=7) == [[i] * 4 for i in range(5)]
    ((_, request),) = server.requests
    assert (request["n"], request["seed"]) == (5, 7)


def test_llama_server_draws_as_many_at_a_time_as_it_has_slots(make_client, server):
    def reply(path, request):
        if path == "/props":
            return 200, {"total_slots": 4}
        return completions(*[DRAWN] * request.get("n", 1))

    server.reply = reply
    assert make_client().draw_codes_several("a heart", 9, seed=7) == [CODES] * 9
    asked = [(request.get("n", 1), request["seed"]) for path, request in server.requests if path != "/props"]
    assert asked == [(4, 7), (4, 11), (1, 15)]


@pytest.mark.parametrize("owner", ["me", "Hub"])
def test_servers_that_draw_one_by_one_are_asked_one_by_one(owner, make_client, server):
    server.reply = lambda path, request: chat_completion(DRAWN) if "chat" in path else completion(DRAWN)
    pictures = make_client(owner).draw_several("a heart", 3, seed=7)
    assert [picture.size for picture in pictures] == [(16, 16)] * 3
    assert [request["seed"] for _, request in server.requests] == [7, 8, 9]
    assert not any("n" in request for _, request in server.requests)


def test_several_guided_drawings_are_those_of_their_seeds(make_client, server, token_ids):
    def reply(path, request):
        if path == "/props":
            return 200, {"total_slots": 2}
        probs = [{"id": token_ids["<img_0>"] + code, "prob": 0.25} for code in range(4)]
        return completion("<img_1>", logprobs={"content": [{"top_probs": probs}]})

    server.reply = reply
    client = make_client()
    several = client.draw_codes_several("a heart", 3, guidance_scale=1.5, seed=7)
    assert several == [client.draw_codes("a heart", guidance_scale=1.5, seed=seed) for seed in (7, 8, 9)]
    assert len(set(map(tuple, several))) > 1


def test_fewer_drawings_than_asked_for_are_one_clear_error(make_client, server):
    server.reply = lambda path, request: completion(DRAWN)
    with pytest.raises(ServerError, match="gave 1 drawings instead of 3"):
        make_client("vllm").draw_several("a heart", 3)


@pytest.mark.parametrize(
    ("n", "temperature", "message"), [(0, 0.5, r"n must be 1 or more; got 0"), (3, 0.0, r"same drawing 3 times")]
)
def test_numbers_of_drawings_that_make_no_sense_are_refused(n, temperature, message, make_client):
    with pytest.raises(ValueError, match=message):
        make_client().draw_several("a heart", n, temperature)


@pytest.mark.parametrize("owner", ["llamacpp", "me", "vllm"])
def test_answers_may_hold_no_tokens_of_drawings(owner, make_client, server, token_ids, tiny_config):
    server.reply = lambda path, request: chat_completion("a bar")
    make_client(owner).ask("What is this?")
    banned = {token for name, token in token_ids.items() if name.startswith("<img_")}
    banned |= {token_ids[name] for name in ("<image>", "<begin_of_image>", "<end_of_image>")}
    ((_, request),) = server.requests
    if owner == "vllm":
        words = [token for token in range(tiny_config.vocab_size) if token not in banned]
        assert request["allowed_token_ids"] == words
    else:
        assert request["logit_bias"] == {str(token): -100 for token in banned}


def test_transformers_serve_draws_and_guides_by_itself(make_client, server):
    server.reply = lambda path, request: chat_completion(DRAWN)
    assert make_client("Hub").draw_codes("a heart", guidance_scale=1.5, temperature=0.5, seed=1) == CODES
    ((path, request),) = server.requests
    assert (path, request["model"], request["seed"]) == ("/v1/chat/completions", None, 1)
    generation = json.loads(request["generation_config"])
    assert generation["generation_mode"] == "image"
    assert (generation["guidance_scale"], generation["temperature"]) == (1.5, 0.5)
    assert set(request) == {
        "model",
        "messages",
        "seed",
        "generation_config",
        "chat_template_kwargs",
    }  # it refuses others


def test_guidance_prefers_what_the_prompt_makes_likelier(make_client, server, token_ids):
    """Code 1 is likely with the prompt and without it; code 2 mostly with the prompt: 0.4^1.5 / 0.1^0.5 is more."""

    def reply(path, request):
        guided = {1: 0.6, 2: 0.4} if "a heart" in request["prompt"] else {1: 0.9, 2: 0.1}
        probs = [{"id": token_ids["<img_0>"] + code, "prob": prob} for code, prob in guided.items()]
        return completion("<img_1>", logprobs={"content": [{"top_probs": probs}]})

    server.reply = reply
    client = make_client()
    assert client.draw_codes("a heart", temperature=0.0, guidance_scale=1.0 + 1e-9) == [1] * 4
    server.requests.clear()
    assert client.draw_codes("a heart", temperature=0.0, guidance_scale=1.5) == [2] * 4
    assert len(server.requests) == 2 * 4
    unguided = server.requests[3][1]
    assert unguided["prompt"] == "<begin_of_image><img_2>"
    assert set(unguided["logit_bias"]) == {str(token_ids["<img_0>"] + code) for code in (1, 2)}


def test_guidance_is_refused_where_it_cannot_be_had(make_client):
    with pytest.raises(
        ValueError, match=r"guidance_scale needs llama-server or `transformers serve`; got 1.5 for vLLM"
    ):
        make_client("vllm").draw_codes("a heart", guidance_scale=1.5)


def test_codes_become_the_picture_that_the_model_itself_decodes(make_client, server, tiny_model, merging_processor):
    server.reply = lambda path, request: completion(DRAWN)
    pixels = tiny_model.decode_image_tokens(torch.tensor([CODES]))
    expected = merging_processor.post_process_multimodal_output(pixels, generation_mode="image")[0]
    drawing = make_client().draw("a heart")
    assert drawing.tobytes() == expected.tobytes()
    assert drawing.info[DRAWING_CODES] == merging_processor.drawing_text(CODES)


def test_pictures_arrive_as_the_model_lays_them_out(make_client, server, merging_processor):
    server.reply = lambda path, request: chat_completion("a bar")
    picture = Image.linear_gradient("L").resize((41, 23)).convert("RGB")
    assert make_client().ask("What is this?", [picture]).text == "a bar"
    content = server.requests[0][1]["messages"][0]["content"]
    sent = Image.open(BytesIO(base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])))
    again, once = (merging_processor.image_processor(p)["pixel_values"][0] for p in (sent, picture))
    assert sent.size == (16, 16)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(once), rtol=0, atol=0)
    assert content[1] == {"type": "text", "text": "What is this?"}


def test_pictures_are_sent_as_the_squares_that_the_checkpoint_sets(make_client, server):
    server.reply = lambda path, request: chat_completion("a bar")
    client = make_client()
    picture = Image.new("RGB", (41, 23), "yellow")
    picture.paste("blue", (15, 8, 26, 15))
    for fit, corner in (("pad-edge", (255, 255, 0)), ("pad-white", (255, 255, 255)), ("crop", (255, 255, 0))):
        client.processor.image_processor.fit = fit
        client.ask("What is this?", [picture])
        content = server.requests[-1][1]["messages"][0]["content"]
        sent = Image.open(BytesIO(base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])))
        assert sent.size == (16, 16) and sent.getpixel((0, 0)) == corner
        assert sent.getpixel((8, 8))[0] < 100 < sent.getpixel((8, 8))[2]  # blue


@pytest.mark.parametrize("text", ["two of them</think>2", "<think>two of them</think>2"])
def test_thinking_comes_apart_from_the_answer(text, make_client, server):
    server.reply = lambda path, request: chat_completion(text)
    answer = make_client().ask("How many?", think=True)
    assert (answer.thinking, answer.text) == ("two of them", "2")
    assert server.requests[0][1]["chat_template_kwargs"] == {"enable_thinking": True}


def test_an_answer_grows_as_the_server_writes_it(make_client, server):
    server.reply = lambda path, request: streamed("two of", " them</think>", "2")
    answers = list(make_client().ask_stream("How many?", think=True))
    assert answers == [("two of", ""), ("two of them", ""), ("two of them", "2")]
    assert server.requests[0][1]["stream"] is True


def test_a_stream_that_breaks_off_or_says_nothing_is_one_clear_error(make_client, server):
    client = make_client()
    server.reply = lambda path, request: streamed()
    with pytest.raises(ServerError, match="answers without text"):
        list(client.ask_stream("What is this?"))
    server.cut = True
    server.reply = lambda path, request: (200, streamed("a h")[1].replace("data: [DONE]\n\n", ""))
    stream = client.ask_stream("What is this?")
    assert next(stream).text == "a h"
    with pytest.raises(ServerError, match="broke off"):
        list(stream)


def test_a_dead_server_is_one_clear_error(checkpoint):
    with pytest.raises(ServerError, match=r"http://127.0.0.1:9/v1 cannot be reached, or broke off. Is it running"):
        Client("http://127.0.0.1:9/v1", checkpoint)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, "<html>It works!</html>"), "not of the OpenAI protocol"),
        ((200, {"choices": []}), "not of the OpenAI protocol"),
        ((404, {"error": {"message": "no such model"}}), "refuses with HTTP 404: .*no such model"),
        (chat_completion(None), "answers without text"),
    ],
)
def test_nonsense_is_one_clear_error(reply, message, make_client, server):
    client = make_client()
    server.reply = lambda path, request: reply
    with pytest.raises(ServerError, match=message):
        client.ask("What is this?")


@pytest.mark.parametrize("text", ["", "<img_1>", "a heart", "<img_99>" * 4])
def test_too_few_codes_or_codes_of_another_model_are_one_clear_error(text, make_client, server):
    client = make_client()
    server.reply = lambda path, request: completion(text)
    with pytest.raises(ServerError, match=r"codes for a drawing of 4. Is it the model of this checkpoint"):
        client.draw("a heart")


def test_the_key_stays_secret(make_client, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    client = make_client()
    server.reply = lambda path, request: (401, {"error": {"message": "sk-secret is no key"}})
    with pytest.raises(ServerError, match=r"\[key\] is no key"):
        client.ask("What is this?")


def test_a_folder_without_an_image_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no image tokenizer"):
        client_module.load_image_tokenizer(tmp_path)
