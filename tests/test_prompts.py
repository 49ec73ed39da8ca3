from __future__ import annotations

import pytest
import torch

from sd_mlflow import pipeline
from sd_mlflow.checkpoint import SD_EMOJI, find
from sd_mlflow.errors import LimitExceeded
from sd_mlflow.prompts import PromptEncoder


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return pipeline.load(find(SD_EMOJI).folder, "cpu", "float32").prompt_encoder


@torch.no_grad()
def test_a_short_prompt_is_encoded_as_the_tokenizer_pads_it(encoder: PromptEncoder) -> None:
    ids = encoder.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    expected = encoder.text_encoder(ids).last_hidden_state
    assert torch.equal(encoder.encode("a cat", None), expected)


def test_guidance_puts_the_negative_prompt_first(encoder: PromptEncoder) -> None:
    both = encoder.encode("a cat", "a dog")
    assert both.shape == (2, 77, encoder.text_encoder.config.hidden_size)
    torch.testing.assert_close(both[:1], encoder.encode("a dog", None))
    torch.testing.assert_close(both[1:], encoder.encode("a cat", None))


@pytest.mark.parametrize(("words", "chunks"), [(1, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_a_long_prompt_is_used_whole(encoder: PromptEncoder, words: int, chunks: int) -> None:
    prompt = "cat " * words
    assert len(encoder.tokens(prompt)) == words
    assert encoder.encode(prompt, "").shape[:2] == (2, 77 * chunks)


def test_the_last_word_of_a_long_prompt_counts(encoder: PromptEncoder) -> None:
    start = "cat " * 100
    assert not torch.equal(encoder.encode(start + "horse", None), encoder.encode(start + "dog", None))


def test_too_long_a_prompt_is_refused_with_its_count(encoder: PromptEncoder) -> None:
    encoder.check_length("text_prompt", "cat " * 300, 300)
    with pytest.raises(LimitExceeded, match="text_prompt has 301 tokens, at most 300") as refused:
        encoder.check_length("text_prompt", "cat " * 301, 300, row=2)
    assert refused.value.row == 2


def test_no_text_is_lost_on_unknown_words(encoder: PromptEncoder) -> None:
    assert len(encoder.tokens("zyzzyva 🐎 ñandú مرحبا")) > 4
    assert encoder.tokenizer.unk_token_id not in encoder.tokens("zyzzyva 🐎 ñandú مرحبا")
