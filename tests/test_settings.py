from __future__ import annotations

import pytest
from pydantic import ValidationError

from sd_mlflow.settings import Settings


def test_the_environment_wins_over_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(max_prompts_per_request=4).max_prompts_per_request == 4
    monkeypatch.setenv("SD_MLFLOW_MAX_PROMPTS_PER_REQUEST", "2")
    assert Settings(max_prompts_per_request=4).max_prompts_per_request == 2


def test_a_bad_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_MLFLOW_MAX_QUEUED_IMAGES", "many")
    with pytest.raises(ValidationError, match="max_queued_images"):
        Settings()


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="safety"):
        Settings(**{"safety": "off"})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().max_batch_size = 1
