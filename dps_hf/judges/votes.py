"""People's thumbs, ratings and choices as verdicts: a file with one JSON object on each line.

{"prompt": "What is the capital of France?", "response": "Paris.", "thumb": "up"}
{"prompt": "a red star", "response": {"image": "drawings/7.png"}, "rating": 4, "comment": "a bit crooked"}
{"prompt": "What is this?", "images": ["cat.png"], "chosen": "a cat", "rejected": "a dog"}

Ratings are from 1 to 5. Pictures are paths below the folder of the file. Other fields are ignored.
"""

import hashlib
import json
import logging
from codecs import BOM_UTF8
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

from dps_hf.files import write_whole
from dps_hf.inference import CODES, save_drawing
from dps_hf.judges.verdict import Case, Verdict, find_control_token
from dps_hf.model.image_processing_dps import open_picture


STARS = (1, 5)
THUMBS = {"up": 1.0, "down": 0.0}
KINDS = ("thumb", "rating", "chosen")

logger = logging.getLogger(__name__)


def read_votes(path: str | PathLike) -> list[tuple[Case, Verdict]]:
    """Reads the votes of a JSONL file, each with the response that it is about.

    A choice becomes two votes: 1 for the chosen response, 0 for the rejected one. The origin is the file and the line.

    Bad lines are left out, for example those with control tokens such as `<|im_end|>` or `<image>` in their texts. A
    warning names them, and `<name>.bad.jsonl` next to the file has each with its number and the error. That file is
    deleted when there is no bad line any more.
    """
    path = Path(path)
    aside = path.with_suffix(".bad.jsonl")
    votes: list[tuple[Case, Verdict]] = []
    bad: list[dict[str, str | int]] = []
    with path.open("rb") as file:  # bytes: letters that are not UTF-8 spoil only their own line
        for number, line in enumerate(file, 1):
            if not line.removeprefix(BOM_UTF8).strip():  # some editors begin even an empty file with it
                continue
            try:
                vote = json.loads(line, object_pairs_hook=_check_unique)
                votes += _read_vote(vote, path.parent, f"{path.name}:{number}")
            except (ValueError, RuntimeError) as error:  # RuntimeError: nested too deeply, or a loop of links
                bad.append({"line": number, "error": str(error), "text": line.decode(errors="backslashreplace")})
    if not bad:
        aside.unlink(missing_ok=True)
        return votes
    write_whole(aside, "".join(json.dumps(entry) + "\n" for entry in bad))
    listed = "\n".join(f"line {entry['line']}: {entry['error']}" for entry in bad)
    logger.warning("%s: %d bad line(s) left out; %s keeps them.\n%s", path, len(bad), aside.name, listed)
    return votes


class Votes:
    """Appends votes to a JSONL file that [`read_votes`] reads.

    Pictures go to the folder `pictures` beside the file, which is made where it is missing.

    The argument `shown` of both methods is what the person saw: a `"prompt"`, and a `"picture"` if there was one.
    """

    def __init__(self, path: str | PathLike):
        self.path, self._lock = Path(path), Lock()
        (self.path.parent / "pictures").mkdir(parents=True, exist_ok=True)

    def thumb(self, shown: dict[str, Any], response: str | Image.Image, thumb: str) -> None:
        """Adds a thumb, "up" or "down", for one response."""
        self._append({**self._question(shown), "response": self._keep(response), "thumb": thumb})

    def choice(self, shown: dict[str, Any], chosen: str | Image.Image, rejected: str | Image.Image) -> None:
        """Adds a choice of one response over another."""
        self._append({**self._question(shown), "chosen": self._keep(chosen), "rejected": self._keep(rejected)})

    def _question(self, shown: dict[str, Any]) -> dict[str, Any]:
        picture = shown.get("picture")
        return {"prompt": shown["prompt"]} | ({"images": [self._save(picture)]} if picture else {})

    def _keep(self, response: str | Image.Image) -> str | dict[str, str]:
        return response if isinstance(response, str) else {"image": self._save(response)}

    def _save(self, picture: Image.Image) -> str:
        codes = picture.info.get(CODES, "")  # drawings of other codes may look the same
        name = f"pictures/{hashlib.sha256(picture.tobytes() + codes.encode()).hexdigest()[:16]}.png"
        save_drawing(picture, self.path.parent / name)
        return name

    def _append(self, vote: dict[str, Any]) -> None:
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(vote, ensure_ascii=False) + "\n")


def _check_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"Each field must occur once; got {', '.join(key for key, _ in pairs)}.")
    return fields


def _read_vote(vote: Any, folder: Path, origin: str) -> list[tuple[Case, Verdict]]:
    """
    Raises:
        ValueError: a field is wrong.
    """
    if not isinstance(vote, dict):
        raise ValueError(f'A line must be an object such as {{"prompt": ..., "thumb": "up"}}; got {vote!r}.')
    kinds = [kind for kind in KINDS if kind in vote]
    if len(kinds) != 1:
        raise ValueError(f"A line must have one of {', '.join(KINDS)}; got {', '.join(kinds) or 'none'}.")
    prompt, comment, images = vote.get("prompt"), vote.get("comment", ""), vote.get("images", [])
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"'prompt' must be a text; got {prompt!r}.")
    if not isinstance(comment, str):
        raise ValueError(f"'comment' must be a text; got {comment!r}.")
    _check_letters("prompt", prompt)
    _check_letters("comment", comment)
    if not isinstance(images, list):
        raise ValueError(f"'images' must be a list of paths; got {images!r}.")
    shown = tuple(_read_picture("images", image, folder) for image in images)
    if kinds == ["chosen"]:
        scores = {"chosen": 1.0, "rejected": 0.0}
        aspect = "choice"
    else:
        aspect = kinds[0]
        scores = {"response": _read_thumb(vote["thumb"]) if aspect == "thumb" else _read_rating(vote["rating"])}
    responses = [_read_response(field, vote.get(field), folder) for field in scores]
    if len({isinstance(response, str) for response in responses}) == 2:
        raise ValueError("'chosen' and 'rejected' must both be texts or both be pictures; got one of each.")
    if len(responses) == 2 and _get_content(responses[0]) == _get_content(responses[1]):
        raise ValueError("'chosen' and 'rejected' must differ; they are the same.")
    return [
        (Case(prompt, response, shown, origin=origin), Verdict({aspect: score}, comment, "users", origin))
        for response, score in zip(responses, scores.values())
    ]


def _get_content(response: str | Image.Image) -> Any:
    return response if isinstance(response, str) else (response.size, response.tobytes())


def _check_letters(field: str, text: str) -> None:
    """
    Raises:
        ValueError: the text has control tokens, or half of a surrogate pair, which no tokenizer takes.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"'{field}' must be valid Unicode; got half of a surrogate pair in {text!r}.")
    if name := find_control_token(text):
        raise ValueError(f"'{field}' must not hold control tokens; got {name!r}. Write it in other words.")


def _read_thumb(thumb: Any) -> float:
    if thumb not in list(THUMBS):
        raise ValueError(f'\'thumb\' must be "up" or "down"; got {thumb!r}.')
    return THUMBS[thumb]


def _read_rating(rating: Any) -> float:
    low, high = STARS
    if isinstance(rating, bool) or not isinstance(rating, (int, float)) or not low <= rating <= high:
        raise ValueError(f"'rating' must be a number from {low} to {high}; got {rating!r}.")
    return (rating - low) / (high - low)


def _read_response(field: str, response: Any, folder: Path) -> str | Image.Image:
    if isinstance(response, dict) and "image" in response:
        return _read_picture(field, response["image"], folder)
    if not isinstance(response, str) or not response.strip():
        raise ValueError(f'\'{field}\' must be a text or {{"image": "path"}}; got {response!r}.')
    _check_letters(field, response)
    return response


def _read_picture(field: str, name: Any, folder: Path) -> Image.Image:
    # Files of votes may come from strangers, who must not read files elsewhere.
    if not isinstance(name, str) or not (path := (folder / name).resolve()).is_relative_to(folder.resolve()):
        raise ValueError(f"'{field}' must be the path of a picture below {folder}; got {name!r}.")
    return open_picture(path)
