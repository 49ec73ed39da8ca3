"""Prompts without end: rows become image files and prediction rows, repeatable to the byte.

The image files are the only state (see `sd_mlflow.store`). A file's name is made from everything
that decides its bytes (prompt, parameters, seed, checkpoint); so whoever asks again, after a crash
or beside somebody else, finds what is done and makes only what is missing. A row without a seed
gets one made from its content, for the same reason.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TextIO
from weakref import WeakValueDictionary

from sd_mlflow import contract, tables
from sd_mlflow.contract import GenerationRequest
from sd_mlflow.errors import InvalidParameter, InvalidRequest, RequestError, SDMLflowError
from sd_mlflow.jobs import Caller, GeneratedImage
from sd_mlflow.model import TextToImage
from sd_mlflow.parameters import ImageRequest
from sd_mlflow.store import TEMPORARY
from sd_mlflow.tables import InputRow

#: Alone in its call and never late: then an image is the same to the byte whatever else is in work.
SETTINGS = {"max_batch_size": 1, "deadline_seconds": 86_400}
#: Rows in work at once: enough that the engine never waits for a file to be written.
_AHEAD = 4
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
    futures: dict[str, Future[GeneratedImage]]


class Store(Protocol):
    """Where a scorer's images go; see `sd_mlflow.store.ImageStore`."""

    def flag_of(self, path: str) -> str | None:
        """The flag of the image at `path`, or None if it is not there."""

    def write(self, path: str, encoded: bytes) -> None:
        """Keep an image file."""


class Scorer:
    """Scores rows into `store` with `parameters`, which a column of the same name overrides."""

    def __init__(
        self, model: TextToImage, store: Store, parameters: Mapping[str, Any], *, resume: bool = True
    ) -> None:
        self._model = model
        self._store = store
        self._parameters = parameters
        self._resume = resume
        # One caller for all rows: image after image, so that a stop loses little that was begun.
        self._caller = Caller()
        #: Images of the rows in work, by path: rows alike share them.
        self._making: WeakValueDictionary[str, Future[GeneratedImage]] = WeakValueDictionary()

    def score(self, path: Path) -> Iterator[Prediction]:
        """The predictions of the file `path`, in its rows' order.

        A row at fault is a prediction with an error; where the file cannot be read (on), a last
        prediction with row -1 says why. Raises `OSError` if an image cannot be written (a full disk).
        """
        return self.score_rows(path.name, tables.read(path))

    def score_rows(self, file: str, rows: Iterable[InputRow]) -> Iterator[Prediction]:
        """The predictions of `rows`, which `file` holds, in their order; see `score`."""
        ahead: deque[_Work | Prediction] = deque()
        for row in rows:
            ahead.append(self._begin(file, row))
            if len(ahead) > _AHEAD:
                yield self._end(file, ahead.popleft())
        yield from (self._end(file, work) for work in ahead)

    def _begin(self, file: str, row: InputRow) -> _Work | Prediction:
        """Validate a row and start on those of its images that are neither there nor being made."""
        prompt = row.cells.get(contract.PROMPT, row.cells.get(contract.PROMPT_ALIAS))
        try:
            if row.error:
                raise InvalidRequest(row.error)
            request = _request(self._model, row.cells, self._parameters)
            planned = {_path(self._model, request, image): image for image in request.images}
            flags = {path: flag for path in planned if self._resume and (flag := self._store.flag_of(path))}
            futures = {path: self._making[path] for path in planned if path not in flags and path in self._making}
            missing = [path for path in planned if path not in flags and path not in futures]
            made = zip(missing, self._model.submit([planned[path] for path in missing], self._caller), strict=True)
            futures |= made
            self._making.update(futures)
        except RequestError as error:
            return Prediction(file, row.number, prompt if isinstance(prompt, str) else None, error=error.message)
        return _Work(row, request, tuple(planned), flags, futures)

    def _end(self, file: str, work: _Work | Prediction) -> Prediction:
        """Wait for a row's images and write them."""
        if isinstance(work, Prediction):
            return work
        said = Prediction(file, work.row.number, work.request.images[0].prompt)
        said = replace(said, seed=tuple(image.seed for image in work.request.images))
        try:
            made = {path: future.result() for path, future in work.futures.items()}
        except RequestError as error:
            return replace(said, error=error.message)
        for path, image in made.items():
            self._store.write(path, self._model.encode(image, work.request))
        flags = work.flags | {path: image.verdict.value for path, image in made.items()}
        return replace(said, images=work.paths, nsfw_content_detected=tuple(flags[path] for path in work.paths))


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
        shutil.rmtree(out / TEMPORARY, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(out / TEMPORARY, ignore_errors=True)


@contextmanager
def predictions_file(out: Path) -> Iterator[TextIO]:
    """`out/predictions.jsonl`, to write: it replaces that of an earlier run once it is whole."""
    partial = out / "predictions.jsonl.partial"
    with partial.open("w", encoding="utf-8") as lines:
        yield lines
    partial.replace(out / "predictions.jsonl")
