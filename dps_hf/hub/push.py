"""Pushes a saved model, adapter or data set to the Hub in one commit.

card = model_card("model_cards/base.md", "me/dps-nano", "model_cards/results/dps-nano.json", ...)
push("runs/nano", "me/dps-nano", card)
push("runs/nano", "me/dps-nano", card, beside=["nano-q8_0.gguf"], exist_ok=True)

`model.push_to_hub` and `processor.push_to_hub` of transformers work, too. Each makes its own commit, without a card.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    ModelCard,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

from dps_hf.hub.cards import load_splits


# The files that loading needs. Other files of a trainer are left out, above all pickled ones.
FILES = ("*.safetensors", "*.json", "*.jinja", "*.py", "*.txt", "*.model", "LICENSE*")
LEFT_OUT = ("trainer_state.json", "settings.json", "*_results.json")
STALE = {"model": ("*.safetensors", "*.safetensors.index.json"), "dataset": ("data/*.parquet",)}
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "*.model", "*.gguf", "*.parquet")
SHARD_BYTES = 500_000_000  # largest size of a Parquet file
HEAD_BYTES = 32_000_000  # largest part of a file that is searched for keys and paths

SHOWN_PICTURES = re.compile(r"!\[[^\]]*\]\(([\w.-]+\.(?:png|jpe?g|gif|webp))\)")
KEYS = re.compile(
    r"\bhf_[A-Za-z0-9]{30,}|\bsk-[\w-]{20,}|\bgh[pousr]_\w{30,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY"
)
PATHS = re.compile(r"(?<![\w.~/-])(?:/(?:home|Users)/[\w.-]+/|/root/|/tmp/|[A-Za-z]:\\{1,2}Users\\)[^\s\"'`)]*")


def push(
    folder: str | PathLike,
    repo_id: str,
    card: ModelCard | DatasetCard,
    beside: Sequence[str | PathLike] = (),
    exist_ok: bool = False,
    private: bool | None = None,
    message: str = "Upload",
    api: HfApi | None = None,
    revision: str | None = None,
    needs_base: bool = True,
) -> CommitInfo:
    """Pushes everything that loading needs in one commit, so that a failed push leaves the repository unchanged.

    Files that the repository already contains are not uploaded again. Old weights that are not in the folder are
    deleted, because they could be loaded in place of the new ones.

    Args:
        folder: what `save_pretrained` of a model and its processor, or of an adapter, or `save_to_disk` of a data set
            wrote. A data set is pushed as Parquet.
        card: from [`~dps_hf.hub.cards.model_card`] or [`~dps_hf.hub.cards.dataset_card`]. It decides whether a model
            or a data set is pushed. The base model of an adapter is the card's `base_model`.
        beside: other files to push, such as a licence or GGUF files.
        exist_ok: whether to push to a repository that already contains files.
        api: the client with endpoint and token. By default they come from the environment.
        revision: an existing branch to push to. By default the main one.
        needs_base: whether the card of an adapter must name its base model. If it need not and does not, the adapter
            names none.

    Raises:
        ValueError: the folder lacks files or pictures that the card shows, the card's metadata is wrong, or a file
            contains a key or a path of this machine.
        FileExistsError: the repository contains files, and `exist_ok` is False.
        PermissionError: there is no token, or it has no permission to write.
        ConnectionError: the Hub could not be reached, or the push failed.
    """
    folder, api = Path(folder), api or HfApi()
    if not folder.is_dir():
        raise ValueError(f"folder must be a directory; there is none at {folder}. Save the model there first.")
    with tempfile.TemporaryDirectory() as temporary:
        if card.repo_type == "dataset":
            files: dict[str, Path | bytes] = {**_write_parquet(folder, Path(temporary))}
        else:
            files = _find_model_files(folder, card, needs_base)
        files |= {Path(path).name: Path(path) for path in beside}
        if missing := sorted({*SHOWN_PICTURES.findall(card.text)} - set(files)):
            raise ValueError(f"The card shows {', '.join(missing)}, which {folder} lacks. Give it in beside.")
        files["README.md"] = card.content.encode()
        _check_leaks(files, [folder, Path.cwd()], api.token if isinstance(api.token, str) else get_token())

        with _explain_errors(repo_id, api.endpoint):
            api.whoami()  # checks the token first
            try:
                info = api.repo_info(repo_id, repo_type=card.repo_type, revision=revision)
            except RepositoryNotFoundError:
                api.create_repo(repo_id, repo_type=card.repo_type, private=private)
                info = api.repo_info(repo_id, repo_type=card.repo_type, revision=revision)
            there = {*api.list_repo_files(repo_id, repo_type=card.repo_type, revision=info.sha)} - {".gitattributes"}
            if there and not exist_ok:
                raise FileExistsError(
                    f"{repo_id} exists and holds {len(there)} files. Choose another name, or set exist_ok=True."
                )
            stale = [
                name
                for name in sorted(there - set(files))
                if any(Path("/", name).match(f"/{pattern}") for pattern in STALE[card.repo_type])
            ]
            return api.create_commit(
                repo_id,
                [
                    *(CommitOperationAdd(name, content) for name, content in sorted(files.items())),
                    *(CommitOperationDelete(name) for name in stale),
                ],
                commit_message=message,
                repo_type=card.repo_type,
                revision=revision,
                # Fails if somebody else has pushed in the meantime.
                parent_commit=info.sha,
            )


def _find_model_files(folder: Path, card: ModelCard | DatasetCard, needs_base: bool) -> dict[str, Path | bytes]:
    """The files of a model or an adapter to push, by name.

    Raises:
        ValueError: a file that loading needs is missing.
    """
    found = {path.name: path for pattern in FILES for path in folder.glob(pattern)}
    found = {name: path for name, path in found.items() if not any(Path(name).match(p) for p in LEFT_OUT)}
    found |= {path.name: path for path in folder.glob("*.png") if f"({path.name})" in card.text}
    files: dict[str, Path | bytes] = {**found}

    adapter = "adapter_config.json" in files
    needed = {"adapter_model.safetensors"} if adapter else {"config.json", "processor_config.json"}
    if not adapter and "model.safetensors.index.json" in found:  # sharded
        needed |= set(json.loads(found["model.safetensors.index.json"].read_text())["weight_map"].values())
    elif not adapter:
        needed.add("model.safetensors")
    for name in ("config.json", "processor_config.json"):
        if name in found:
            classes = json.loads(found[name].read_text()).get("auto_map", {}).values()
            needed |= {f"{of_class.partition('.')[0]}.py" for of_class in classes}
    if missing := sorted(needed - set(files)):
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}. Save it with save_pretrained of the model and of the processor; "
            "weights must be safetensors."
        )

    for name in ("config.json", "adapter_config.json"):
        if name in found:
            config = _remove_names(json.loads(found[name].read_text()))
            if name == "adapter_config.json":
                if needs_base and not card.data.get("base_model"):
                    raise ValueError("The card of an adapter must name its base_model on the Hub. Give base_model.")
                config["base_model_name_or_path"] = card.data.get("base_model")
            files[name] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return files


def _remove_names(config: Any) -> Any:
    """Removes `_name_or_path` from a config, because it is the path from which a part was loaded on this machine."""
    if isinstance(config, dict):
        return {key: _remove_names(value) for key, value in config.items() if key != "_name_or_path"}
    return [_remove_names(value) for value in config] if isinstance(config, list) else config


def _write_parquet(folder: Path, temporary: Path) -> dict[str, Path]:
    """Writes the splits as Parquet with the pictures in it, like `push_to_hub` of `datasets`."""
    from datasets.table import embed_table_storage

    files = {}
    for name, split in load_splits(folder).items():
        shards = max(1, -(-split.data.nbytes // SHARD_BYTES))
        for index in range(shards):
            shard = split.shard(shards, index, contiguous=True)
            embedded = shard.with_format("arrow").map(embed_table_storage, batched=True, batch_size=1000)
            path = f"data/{name}-{index:05}-of-{shards:05}.parquet"
            files[path] = temporary / path
            files[path].parent.mkdir(exist_ok=True)
            embedded.with_format(None).to_parquet(files[path])
    return files


def _check_leaks(files: dict[str, Path | bytes], places: Sequence[Path], token: str | None) -> None:
    """Checks that no file contains a key or a path of this machine.

    Raises:
        ValueError: a file does. The error does not contain the key.
    """
    secrets = {value for name, value in os.environ.items() if re.search(r"(TOKEN|KEY|SECRET|PASSWORD)$", name)}
    secrets = {secret for secret in {*secrets, token or ""} if len(secret) >= 12}
    # Short paths such as `/data` may be part of a text.
    here = [place for place in (str(place.resolve()) for place in places) if place.count(os.sep) > 1]
    for name, content in files.items():
        vocabulary = any(Path(name).match(pattern) for pattern in VOCABULARIES)
        for text in _read_texts(name, content):
            if any(secret in text for secret in secrets) or KEYS.search(text):
                raise ValueError(f"{name} holds a key. Nothing was pushed. Remove the key, and revoke it.")
            found = next((place for place in here if place in text), None)
            if not found and not vocabulary and (match := PATHS.search(text)):
                found = match[0]
            if found:
                raise ValueError(
                    f"{name} holds the path {found} of this machine. Nothing was pushed. Remove it, or use a "
                    "relative path."
                )


def _read_texts(name: str, content: Path | bytes) -> Iterator[str]:
    """Yields the text of a file: the strings of a data set, the header of weights, the beginning of other files."""
    if name.endswith(".parquet"):
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(content).iter_batches(1000):
            yield from _find_strings(batch.to_pylist())
    elif isinstance(content, bytes):
        yield content.decode(errors="replace")
    else:
        with open(content, "rb") as file:
            size = int.from_bytes(file.read(8), "little") if name.endswith(".safetensors") else HEAD_BYTES
            yield file.read(min(size, HEAD_BYTES)).decode(errors="replace")


def _find_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _find_strings(part)


@contextmanager
def _explain_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Raises errors of the Hub and of the network again with a message that gives the remedy."""
    try:
        yield
    except (ValueError, FileExistsError):
        raise
    except LocalTokenNotFoundError:
        raise PermissionError(
            f"There is no token for pushing to {repo_id}. Set HF_TOKEN, or log in with `hf auth login`."
        ) from None
    except Exception as error:  # any HTTP library may raise its own
        status = (
            error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
        )
        if status in (401, 403):
            raise PermissionError(
                f"{endpoint} refused the token for {repo_id} ({status}). Set HF_TOKEN to one with permission to write."
            ) from error
        if isinstance(error.__cause__, Exception):  # uploads wrap the original error
            error = error.__cause__
        raise ConnectionError(
            f"The push to {repo_id} at {endpoint} broke off: {str(error).rstrip('.') or type(error).__name__}. The "
            "repository is unchanged, unless only the last reply was lost. Push again."
        ) from error
