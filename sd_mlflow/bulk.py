"""Prompts without end: rows become image files and prediction rows, repeatable to the byte.

The image files are the only state. A file's name is made from everything that decides its bytes
(prompt, parameters, seed, checkpoint), it appears whole or not at all, and it carries its own
verdict; so whoever asks again, after a crash or beside somebody else, finds what is done and
makes only what is missing. A row without a seed gets one made from its content, for the same
reason.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from sd_mlflow import contract, images, tables
from sd_mlflow.contract import GenerationRequest
from sd_mlflow.engine import GeneratedImage
from sd_mlflow.errors import GenerationFailed, InvalidParameter, InvalidRequest, RequestError, SDMLflowError
from sd_mlflow.model import TextToImage
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.tables import InputRow

#: Alone in its call and never late: then an image is the same to the byte whatever else is in work.
SETTINGS = {"max_batch_size": 1, "deadline_seconds": 86_400}
#: Rows in work at once: enough that the engine never waits for a file to be written.
_AHEAD = 4
_PARTIAL = ".partial"
#: Parameters that say how one answer is laid out, which a file of images has no use for.
_NOT_HERE = ("orient", "return_metadata")


@dataclass(frozen=True)
class Prediction:
    """What became of a row: its images' paths below the output folder, their flags and seeds, or an error."""

    file: str
    row: int
    text_prompt: str | None
    images: tuple[str, ...] = ()
    nsfw_content_detected: tuple[str, ...] = ()
    seed: tuple[int, ...] = ()
    error: str | None = None

    def to_json(self) -> str:
        """One line of a predictions file."""
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class _Work:
    """A row in work: its request, where its images go, and the flags of those that are there."""

    row: InputRow
    request: GenerationRequest
    paths: tuple[str, ...]
    flags: dict[str, str]


class Scorer:
    """Scores rows into the folder `out` with `parameters`, which a column of the same name overrides."""

    def __init__(
        self, model: TextToImage, out: Path, parameters: Mapping[str, Any], *, resume: bool = True
    ) -> None:
        self._model = model
        self._out = out
        self._parameters = parameters
        self._resume = resume
        #: Images being made, by path: of two rows alike, the second waits for the first's.
        self._making: dict[str, Future[GeneratedImage]] = {}

    def score(self, path: Path) -> Iterator[Prediction]:
        """The predictions of the file `path`, in its rows' order.

        A row at fault is a prediction with an error; where the file cannot be read (on), a last
        prediction with row -1 says why. Raises `OSError` if an image cannot be written (a full disk).
        """
        ahead: deque[_Work | Prediction] = deque()
        try:
            for row in tables.read(path):
                ahead.append(self._begin(path.name, row))
                if len(ahead) > _AHEAD:
                    yield self._end(path.name, ahead.popleft())
        except InvalidRequest as error:
            ahead.append(Prediction(path.name, -1, None, error=error.message))
        while ahead:
            yield self._end(path.name, ahead.popleft())

    def _begin(self, file: str, row: InputRow) -> _Work | Prediction:
        """Validate a row and start on those of its images that are neither there nor being made."""
        prompt = row.cells.get(contract.PROMPT, row.cells.get(contract.PROMPT_ALIAS))
        try:
            if row.error:
                raise InvalidRequest(row.error)
            request = _request(self._model, row.cells, self._parameters)
            planned = {_path(self._model, request, image): image for image in request.images}
            flags = {path: flag for path in planned if self._resume and (flag := flag_of(self._out / path))}
            missing = [path for path in planned if path not in flags and path not in self._making]
            futures = self._model.submit([planned[path] for path in missing])
            self._making |= zip(missing, futures, strict=True)
        except RequestError as error:
            return Prediction(file, row.number, prompt if isinstance(prompt, str) else None, error=error.message)
        return _Work(row, request, tuple(planned), flags)

    def _end(self, file: str, work: _Work | Prediction) -> Prediction:
        """Wait for a row's images and write them."""
        if isinstance(work, Prediction):
            return work
        said = Prediction(file, work.row.number, work.request.images[0].prompt)
        said = replace(said, seed=tuple(image.seed for image in work.request.images))
        try:
            flags = tuple(work.flags.get(path) or self._finish(path, work.request) for path in work.paths)
        except RequestError as error:
            return replace(said, error=error.message)
        return replace(said, images=work.paths, nsfw_content_detected=flags)

    def _finish(self, path: str, request: GenerationRequest) -> str:
        """The flag of an image that was being made, once it is written."""
        future = self._making.pop(path, None)
        if future is None:  # a row alike was to write it
            flag = flag_of(self._out / path)
            if flag is None:
                raise GenerationFailed("the image failed for a row alike")
            return flag
        image = future.result()
        _write(self._out / path, self._model.encode(image, request))
        return image.verdict.value


def _request(model: TextToImage, cells: Mapping[str, Any], parameters: Mapping[str, Any]) -> GenerationRequest:
    """The request of one row; its seed is made from its content unless one is given."""
    columns = {name: cell for name, cell in cells.items() if name in contract.COLUMNS}
    given = dict(parameters) | {name: cell for name, cell in cells.items() if name not in contract.COLUMNS}
    for name in _NOT_HERE:
        if name in given:
            raise InvalidParameter(f"{name} is a parameter of a request, not of a row")
    if columns.get("seed", given.get("seed")) is None:
        content = json.dumps([sorted(columns.items()), sorted(given.items())], default=str)
        columns["seed"] = int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big")
    return model.parse([columns], given)


def _path(model: TextToImage, request: GenerationRequest, image: ImageRequest) -> str:
    """Where `image` goes below the output folder: a name made from all that decides its bytes."""
    content = [
        asdict(image),
        request.image_format,
        request.image_quality,
        model.digest,
        model.settings.prompt_in_provenance,
    ]
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    # 256 folders, so that a million files stay within what file systems and people can list.
    return f"images/{name[:2]}/{name}.{request.image_format}"


@contextmanager
def working_in(out: Path) -> Iterator[None]:
    """Have the folder `out` for this run alone, without what a run that was killed left half written.

    Raises `SDMLflowError` if another run is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SDMLflowError(f"another run is at work in {out}: wait for it, or give another folder") from None
        for partial in out.rglob(f"*{_PARTIAL}"):
            partial.unlink()
        yield


@contextmanager
def predictions_file(out: Path) -> Iterator[TextIO]:
    """`out/predictions.jsonl`, to write: it replaces that of an earlier run once it is whole."""
    partial = out / f"predictions.jsonl{_PARTIAL}"
    with partial.open("w", encoding="utf-8") as lines:
        yield lines
    partial.replace(out / "predictions.jsonl")


def flag_of(path: Path) -> str | None:
    """The flag that the image at `path` carries, or None if there is no whole image."""
    try:
        return images.read_provenance(path.read_bytes()).get(contract.FLAGS)
    except (OSError, ValueError):
        return None


def _write(path: Path, encoded: bytes) -> None:
    """Write an image so that its name never stands for half of it, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        partial.write_bytes(encoded)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
