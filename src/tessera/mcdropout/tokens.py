"""From words to token numbers, with the ``tokenizer.json`` beside the weights."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from hpc.store.plain import read_json
from tessera.input_files import explained, require_file
from tessera.mcdropout.errors import TextError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Cleaning: TypeAlias = Literal["none", "lower", "canonicalize"]
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean(text: str, cleaning: Cleaning) -> str:
    """Clean a text as the model's tokenizer expects.

    ``canonicalize`` is that of SigLIP's evaluation (big_vision, ``prompt_engineering.canonicalize_text``): underscores
    are spaces, no punctuation, lower case, single spaces. ``lower`` is the training default of SigLIP 2.
    """
    if cleaning == "canonicalize":
        return " ".join(text.replace("_", " ").translate(_PUNCTUATION).lower().split())
    return text.lower() if cleaning == "lower" else text


@dataclass(frozen=True)
class Tokenizer:
    """Token numbers of texts, all of one length.

    Attributes
    ----------
    backend
        The tokenizer of the ``tokenizers`` package, which adds the begin and end tokens.
    context
        Length of every sequence: longer texts are cut, keeping the end token; shorter ones are padded.
    cleaning
        What is done to a text first.
    path
        The file it was read from.
    """

    backend: Backend
    context: int
    cleaning: Cleaning
    path: Path

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the numbers (N, context), int64, of some texts.

        Raises
        ------
        TextError
            If there is no text, or one is empty.
        """
        cleaned = [clean(text, self.cleaning) for text in texts]
        empty = [repr(text) for text, kept in zip(texts, cleaned, strict=True) if not kept.strip()]
        if not texts or empty:
            msg = f"nothing to encode in {', '.join(empty) or 'an empty list of texts'}; give words"
            raise TextError(msg)
        with explained(str(self.path), "copy it again from the model's repository", TextError):
            return torch.tensor([encoding.ids for encoding in self.backend.encode_batch(cleaned)], dtype=torch.int64)


def read_tokenizer(path: Path, context: int, cleaning: Cleaning, pad: int | None) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Parameters
    ----------
    path
        The file.
    context
        Length of every sequence.
    cleaning
        What is done to a text first.
    pad
        Number of the padding token if no file says; None if it matters, because the model sees it.

    Raises
    ------
    TextError
        If the file is missing or cannot be read, or the padding matters and is not known.
    """
    from tokenizers import Tokenizer as Backend

    if not path.exists():
        msg = f"{path} does not exist, and texts need it; copy it from the model's repository beside the weights"
        raise TextError(msg)
    require_file(path, "", "copy it again from the model's repository", TextError)
    with explained(f"tokenizer {path}", "copy it again from the model's repository", TextError):
        backend = Backend.from_file(str(path))
    with explained(f"{path} or tokenizer_config.json beside it", "copy them again", TextError):
        number, token = _padding(backend, path, pad)
        backend.enable_truncation(context)
        backend.enable_padding(length=context, pad_id=number, pad_token=token)
    return Tokenizer(backend, context, cleaning, path)


def _padding(backend: Backend, path: Path, pad: int | None) -> tuple[int, str]:
    """Return number and name of the padding token: of the file, of tokenizer_config.json beside it, or `pad`."""
    stated = backend.padding
    if stated:
        return int(stated["pad_id"]), str(stated["pad_token"])
    config = path.with_name("tokenizer_config.json")
    named = _read(config).get("pad_token") if config.is_file() else None
    token = named.get("content") if isinstance(named, dict) else named
    number = backend.token_to_id(token) if token else pad
    if number is None:
        msg = (
            f"neither {path} nor {config.name} beside it names a padding token, which this model sees; "
            "copy tokenizer_config.json from the model's repository"
        )
        raise TextError(msg)
    return number, token or backend.id_to_token(number) or ""


def _read(config: Path) -> dict[str, Any]:
    try:
        content = read_json(config)
    except (OSError, ValueError) as error:
        msg = f"{config} cannot be read as JSON ({error}); copy it again from the model's repository"
        raise TextError(msg) from error
    return content if isinstance(content, dict) else {}
