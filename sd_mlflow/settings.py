"""The deployment's settings: one table, read from what the package says and from the environment.

An environment variable is `SD_MLFLOW_` and the setting's name in capitals, and it wins over
the package: `SD_MLFLOW_MAX_PROMPTS_PER_REQUEST=4`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


class Settings(BaseSettings):
    """Limits and resources of one running model. Raises `pydantic.ValidationError` on a bad value."""

    model_config = SettingsConfigDict(env_prefix="SD_MLFLOW_", frozen=True, extra="forbid")

    max_prompts_per_request: int = Field(16, ge=1, description="Rows that one request may hold.")
    max_images_per_request: int = Field(32, ge=1, description="Images that one request may ask for.")
    max_pixels_per_image: int = Field(1024 * 1024, ge=64 * 64, description="Height times width of an image.")
    max_prompt_characters: int = Field(
        4000, ge=1, le=5000, description="Characters of a prompt; an image must be able to carry two."
    )
    max_prompt_tokens: int = Field(300, ge=1, description="Tokens of a prompt; 75 fill a chunk.")
    max_request_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="Bytes of a request's body.")
    max_queued_images: int = Field(64, ge=1, description="Images in work and waiting, of all callers.")
    max_batch_size: int = Field(
        16, ge=1, description="Images that one UNet call works on, at most; fewer where that is faster."
    )
    deadline_seconds: float = Field(170, gt=0, description="How long a request may take, waiting included.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="What the model runs in; auto: as packaged, but float32 where a CPU lacks that type."
    )
    execution: Literal["auto", "eager", "packed", "compiled"] = Field(
        "auto",
        description="How it runs; auto: packed on a CPU in bfloat16, else eager; compiled makes the first wait.",
    )
    prompt_in_provenance: bool = Field(True, description="Whether images carry the prompt they were made from.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then what the package says."""
        return env_settings, init_settings
