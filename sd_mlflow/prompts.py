"""Prompts become embeddings: tokens, chunks past 77, and counts for errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from sd_mlflow.errors import LimitExceeded


@dataclass(frozen=True)
class PromptEncoder:
    """A tokenizer and the text encoder that reads its tokens, `positions` (77) at a time."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    # A fast tokenizer refuses a second thread ("Already borrowed") while it changes its own options.
    _tokenizing: Lock = field(default_factory=Lock, repr=False)

    @property
    def positions(self) -> int:
        """Positions of the text encoder, start and end tokens included."""
        return int(self.text_encoder.config.max_position_embeddings)

    def tokens(self, text: str) -> list[int]:
        """The token ids of the whole of `text`, without start and end."""
        with self._tokenizing:
            ids = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
        return list(ids)

    def check_length(self, name: str, text: str, most: int, row: int | None = None) -> None:
        """Raise `LimitExceeded`, with the count, if `text` has more than `most` tokens."""
        count = len(self.tokens(text))
        if count > most:
            raise LimitExceeded(f"{name} has {count} tokens, at most {most} are allowed here", row)

    @torch.inference_mode()
    def encode(self, prompt: str, negative_prompt: str | None) -> torch.Tensor:
        """Hidden states of `prompt`, preceded by those of `negative_prompt` unless that is None.

        Shape (1 or 2, chunks * 77, width), in the text encoder's dtype. A text past 75 tokens
        is cut into chunks of 75, each with its own start and end, encoded apart and joined; the
        shorter text is filled up with empty chunks.
        """
        texts = [prompt] if negative_prompt is None else [negative_prompt, prompt]
        chunked = [self._chunks(self.tokens(text)) for text in texts]
        most = max(len(chunks) for chunks in chunked)
        empty = self._chunks([])
        rows = [chunk for chunks in chunked for chunk in chunks + empty * (most - len(chunks))]
        ids = torch.tensor(rows, device=self.text_encoder.device)
        hidden: torch.Tensor = self.text_encoder(ids).last_hidden_state
        return hidden.reshape(len(texts), most * self.positions, -1)

    def _chunks(self, ids: list[int]) -> list[list[int]]:
        """`ids` as rows of `positions` tokens: start, up to 75 of them, end, padding."""
        room = self.positions - 2
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        padding = self.tokenizer.pad_token_id
        pieces = [ids[i : i + room] for i in range(0, len(ids), room)] or [[]]
        return [[start, *piece, end, *[padding] * (room - len(piece))] for piece in pieces]
