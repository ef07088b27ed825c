"""Reading arrays from a .npz file that may be damaged or hostile.

Sizes are looked at before anything is unpacked: the zip directory and each array's own header must agree, and
an array that would grow more than ``MOST_GROWTH`` times is refused. Nothing is unpickled.
"""

from __future__ import annotations

import math
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import IO

import numpy as np
from numpy.lib import format as npy

from kdsec.errors import KdsecError, check_path

MOST_GROWTH = 100  # deflate shrinks photographs two times, zeros a thousand times
SMALL = 2**24  # bytes that are unpacked without a look at the growth
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # what np.savez and np.savez_compressed write


def read_arrays(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays ``names`` of a .npz file.

    Raises:
        KdsecError: one line that says what the file is instead, or what is wrong with it.
    """
    file = check_path("file", path)
    try:
        _check_kind(file)
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            missing = [name for name in names if f"{name}.npy" not in members]
            if missing:
                held = ", ".join(name.removesuffix(".npy") for name in members) or "nothing"
                raise KdsecError(f"{file} lacks {', '.join(missing)}; it holds {held[:200]}")
            return {name: _read(archive, members[f"{name}.npy"], file) for name in names}
    except KdsecError:
        raise
    except Exception as error:  # a hostile file can make zipfile, zlib and numpy raise almost anything
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise KdsecError(f"{file} is damaged or no .npz file ({reason})") from None


def array_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the arrays in a .npz file; raises as ``read_arrays``."""
    read_arrays(path, [])
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _check_kind(file: pathlib.Path) -> None:
    """Refuse what is no zip file, and say what it is."""
    if file.is_dir():
        raise KdsecError(f"{file} is a folder, not a .npz file")
    if not file.exists():
        raise KdsecError(f"{file} does not exist")
    if not file.is_file():  # reading a pipe or a device could wait for ever
        raise KdsecError(f"{file} is no regular file; give a .npz file")
    try:
        with file.open("rb") as stream:
            start = stream.read(6)
    except OSError as error:
        raise KdsecError(f"{file} cannot be read ({error.strerror})") from None
    if start == npy.MAGIC_PREFIX:
        raise KdsecError(
            f"{file} holds a single array (.npy), not several; store all in one file with "
            "np.savez(PATH, images=..., labels=...)"
        )
    if start.startswith(b"\x1f\x8b") or start.startswith(b"\x80"):
        kind = "gzip" if start.startswith(b"\x1f\x8b") else "pickle"
        raise KdsecError(f"{file} is a {kind} file, not .npz; load it yourself, then np.savez(PATH, ...)")
    if not zipfile.is_zipfile(file):
        raise KdsecError(f"{file} is damaged or no .npz file: it has no zip directory")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: pathlib.Path) -> np.ndarray:
    what = f"{file}: {info.filename}"
    if info.flag_bits & 1:
        raise KdsecError(f"{what} is encrypted; unzip it with its password and store it with np.savez")
    if info.compress_type not in METHODS:
        raise KdsecError(
            f"{what} is compressed by method {info.compress_type}, which numpy does not write; "
            "store it again with np.savez"
        )
    if info.file_size > max(SMALL, MOST_GROWTH * info.compress_size):
        raise KdsecError(
            f"{what} would unpack {info.compress_size / 1e6:.1f} MB to {info.file_size / 1e6:,.0f} MB, "
            "which images do not; if it is right, store it with np.savez, without compression"
        )
    with archive.open(info) as stream:
        shape, dtype = _header(stream)
        if dtype.hasobject:
            raise KdsecError(f"{what} holds Python objects, which are not read; store numbers")
        announced = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or announced != info.file_size - stream.tell():
            raise KdsecError(
                f"{what} announces {dtype} {shape}, {announced:,} bytes, but holds "
                f"{info.file_size - stream.tell():,}; it is damaged"
            )
    with archive.open(info) as stream:
        return npy.read_array(stream, allow_pickle=False)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
