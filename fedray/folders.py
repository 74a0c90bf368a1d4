"""One folder of any file system that pyarrow knows: this machine's, S3, Google Cloud Storage."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from fedray.errors import ConfigError, RunError
from fedray.files import put


class Folder:
    """A folder; made when something is first written to it.

    Args:
        place: an absolute path, or a URI such as ``s3://bucket/run``.

    Raises:
        ConfigError: it is neither, or cannot be reached.
    """

    def __init__(self, place: str) -> None:
        self._place = place.rstrip("/")
        try:
            self._files, path = fs.FileSystem.from_uri(place)
            self._path = path.rstrip("/")
            self.names()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(
                f"checkpoints.path {place!r}: {str(error).splitlines()[0]}",
                "an absolute folder, or a URI that pyarrow knows, such as s3://bucket/run or gs://bucket/run",
                "correct the path, or leave it out to keep checkpoints in the run directory",
            ) from error

    def __str__(self) -> str:
        return self._place

    def names(self) -> list[str]:
        """Names of the files in it.

        Raises:
            OSError: it cannot be reached.
        """
        found = self._files.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return [one.base_name for one in found if one.is_file]

    def read(self, name: str) -> bytes:
        """What is in a file.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        with self._files.open_input_stream(f"{self._path}/{name}") as file:
            data: bytes = file.read()
        return data

    def write(self, name: str, data: bytes, *, is_durable: bool = False) -> None:
        """Write a file, whole or not at all; on this machine for its user alone.

        Raises:
            RunError: it cannot be written.
        """
        path = f"{self._path}/{name}"
        try:
            self._files.create_dir(self._path, recursive=True)
            if isinstance(self._files, fs.LocalFileSystem):
                put(Path(path), data, is_durable=is_durable)
                return
            with self._files.open_output_stream(f"{path}.partial") as file:
                file.write(data)
            self._files.move(f"{path}.partial", path)
        except OSError as error:
            raise self._unfit(name, error) from error

    def delete(self, name: str) -> None:
        """Delete a file.

        Raises:
            RunError: it is not there, or may not be.
        """
        try:
            self._files.delete_file(f"{self._path}/{name}")
        except OSError as error:
            raise self._unfit(name, error) from error

    def _unfit(self, name: str, error: OSError) -> RunError:
        return RunError(
            f"{name} in {self} cannot be written or deleted: {str(error).splitlines()[0]}",
            "room and rights there",
            "make room, then go on with fedray run --resume",
        )
