"""Where image files go: a folder, or a URI of a store that pyarrow knows (file, hdfs, s3, gs, abfss).

A file appears under its name whole or not at all, whoever else writes it at the same time, and
carries its own flag; so the files are all the state that a run needs to go on.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from pyarrow import fs

from sd_mlflow import contract, images

#: Where files are while they are written; left behind only by who was killed there.
TEMPORARY = "_temporary"


class ImageStore:
    """The image files below `root`. Raises `ValueError` if it is a URI that pyarrow does not know."""

    def __init__(self, root: str | Path) -> None:
        place = str(root) if "://" in str(root) else str(Path(root).absolute())
        files, base = fs.FileSystem.from_uri(place)
        self._files = fs.SubTreeFileSystem(base, files)
        self._folders: set[str] = set()

    def flag_of(self, path: str) -> str | None:
        """The flag that the image at `path` carries, or None if there is no whole image."""
        try:
            with self._files.open_input_file(path) as file:
                return images.read_provenance(file.read()).get(contract.FLAGS)
        except (OSError, ValueError):
            return None

    def write(self, path: str, encoded: bytes) -> None:
        """Write the image file `encoded`. Raises `OSError` if it cannot be (a full disk)."""
        partial = f"{TEMPORARY}/{uuid.uuid4().hex}"
        self._make_folder(TEMPORARY)
        self._make_folder(path.rpartition("/")[0])
        try:
            with self._files.open_output_stream(partial) as file:
                file.write(encoded)
            self._files.move(partial, path)
        except OSError:
            if self._files.get_file_info(partial).type != fs.FileType.NotFound:
                self._files.delete_file(partial)
            raise

    def _make_folder(self, folder: str) -> None:
        if folder not in self._folders:
            self._files.create_dir(folder, recursive=True)
            self._folders.add(folder)
