"""Checkpoint files to plain tensors and back, without ever executing what a file holds."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

#: Keys under which training programs file the state dict that is meant where there are several.
WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict", "net")
#: Modules whose objects training programs leave beside the weights; they are read as blanks.
LEFTOVERS = ("mmengine.", "mmcv.", "numpy.", "argparse.", "builtins.getattr", "__builtin__.getattr")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the fault and the fix."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors of a checkpoint file by name, containers peeled, and its card if any.

    Raises FileNotFoundError, IsADirectoryError, PermissionError or CheckpointError.
    """
    reader = _READERS.get(path.suffix.lower())
    check_readable(path)
    if reader is None:
        raise CheckpointError(
            f"{path}: unknown suffix {path.suffix!r}; expected one of {', '.join(_READERS)}"
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: copy or download it again")
    try:
        content, card = reader(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file makes the parsers raise almost anything
        raise CheckpointError(
            f"{path} is no readable {path.suffix} file (damaged, cut short, or of another kind?): "
            f"{_reason(error)}"
        ) from error
    try:
        tensors = {k: v for k, v in _peel(content).items() if isinstance(v, Tensor)}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name: expected a state dict")
    return tensors, card


def check_readable(path: Path) -> None:
    """Raise the error that says why `path` is no file that can be read."""
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder: expected a checkpoint file ({', '.join(_READERS)})"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a checkpoint file")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} cannot be read: change its permissions (chmod u+r)")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, which then takes its place."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder: make it first")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777  # what the umask gives; some writers narrow it
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    card: str | None = None,
    wrapper: str | None = None,
) -> None:
    """Write a state dict in the format of the suffix, atomically.

    `card` is our JSON card; `wrapper` the key under which a .pth files the state dict.
    """
    suffix = path.suffix.lower()
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    arrays = (
        {} if suffix not in (".npz", ".pdparams") else {k: v.numpy() for k, v in tensors.items()}
    )
    content: Any = dict(tensors) if wrapper is None else {wrapper: dict(tensors)}
    if card is not None:
        content["card"] = json.loads(card)
    writers: dict[str, Callable[[Path], object]] = {
        ".safetensors": lambda p: safetensors.torch.save_file(
            tensors, p, {"format": "pt"} if card is None else {"format": "pt", "card": card}
        ),
        ".pth": lambda p: torch.save(content, p),
        ".pt": lambda p: torch.save(content, p),
        ".npz": lambda p: np.savez(p, **arrays),  # type: ignore[arg-type]
        ".pdparams": lambda p: p.write_bytes(pickle.dumps(arrays, protocol=4)),
    }
    write_atomically(path, writers[suffix])


def _reason(error: Exception) -> str:
    """The telling line of an error: torch's advice to load without safety is left out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "nsupported" in line]
    return (telling or lines or [type(error).__name__])[0].partition(" Please use")[0][:200]


def _peel(content: Any) -> dict[str, Any]:
    """The state dict inside of containers, its keys without what torch.compile puts in them."""
    if not isinstance(content, Mapping):
        return {}
    if not _holds_kernels(content):
        inner = [str(key) for key, value in content.items() if _holds_kernels(value, depth=2)]
        known = [key for key in WRAPPERS if key in inner]
        if len(inner) > 1 and not known:
            raise CheckpointError(
                f"it holds several state dicts ({', '.join(inner)}): save the one that is meant"
            )
        if inner:
            return _peel(content[(known or inner)[0]])
    return {str(k).replace("_orig_mod.", ""): v for k, v in content.items() if k != "n_averaged"}


def _holds_kernels(value: Any, depth: int = 0) -> bool:
    """Whether a mapping has a convolution's weight by name, or one within `depth` mappings."""
    if not isinstance(value, Mapping):
        return False
    named = [inner for key, inner in value.items() if isinstance(key, str)]  # optimizers count
    if any(isinstance(inner, Tensor) and inner.dim() == 4 for inner in named):
        return True
    return depth > 0 and any(_holds_kernels(inner, depth - 1) for inner in named)


# PyTorch


class _Blank:
    """Stands for an object that is no tensor: accepts everything and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


def _read_torch(path: Path) -> tuple[Any, dict[str, Any] | None]:
    if _is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript program: save the state_dict() of what torch.jit.load gives"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        names = _objects_in(path)
        strange = [name for name in names if not name.startswith(LEFTOVERS)]
        if strange:
            raise CheckpointError(
                f"{path} names {strange[0]}, which no state dict needs: refused, nothing was run; "
                "save model.state_dict() instead"
            ) from None
        if not names:
            raise
        with torch.serialization.safe_globals([(_Blank, name) for name in names]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    card = content.get("card") if isinstance(content, Mapping) else None
    return content, card if isinstance(card, dict) else None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _objects_in(path: Path) -> list[str]:
    """Names of the classes and functions in a file beside what tensors need."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except ValueError:  # the format before PyTorch 1.6
        return []


# safetensors


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Any] | None]:
    with safetensors.safe_open(path, framework="pt") as file:
        card = (file.metadata() or {}).get("card")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors, None if card is None else json.loads(card)


# NumPy


def _read_npz(path: Path) -> tuple[Any, None]:
    with np.load(path, allow_pickle=False) as file:
        return {k.removeprefix("arg:").removeprefix("aux:"): _tensor(file[k]) for k in file}, None


def _tensor(array: Any) -> Tensor | None:
    """A copy as a tensor; None for what is no array of numbers."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        return None
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


# Paddle: a pickle of name -> array or name -> (name, array)


class _Dtype:
    """What a pickled numpy dtype is rebuilt as: nothing but a kind, a size and a byte order."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "b1"):
            raise CheckpointError(f"array of type {code!r}: expected plain numbers")
        self.code = f"<{code}"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.code = f">{self.code[1:]}"


class _Array:
    """What a pickled numpy array is rebuilt as: its bytes, checked before numpy sees them."""

    value: np.ndarray

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin1")
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise CheckpointError("array of Python objects: expected plain numbers")
        order = "F" if fortran else "C"
        self.value = np.frombuffer(data, np.dtype(dtype.code)).reshape(shape, order=order)  # type: ignore[call-overload]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """An array as pickle protocol 5 stores it."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(memoryview(data))))
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise CheckpointError(f"bytes as {encoding!r}: expected latin1")
    return text.encode("latin1")


#: All that such a file may name, and what stands in for it here: no callable of another module.
_PADDLE_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "tuple"): tuple,
    ("__builtin__", "tuple"): tuple,
}


class _PaddleUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PADDLE_GLOBALS:
            raise CheckpointError(
                f"it names {module}.{name}, which no state dict needs: refused, nothing was run"
            )
        return _PADDLE_GLOBALS[module, name]


def _read_pdparams(path: Path) -> tuple[Any, None]:
    with path.open("rb") as file:
        try:
            content = _PaddleUnpickler(file, encoding="latin1").load()
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        return {}, None
    tensors = {}
    for key, value in content.items():
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]
        if isinstance(value, _Array):
            tensors[key] = _tensor(value.value)
    return tensors, None


_READERS: dict[str, Callable[[Path], tuple[Any, dict[str, Any] | None]]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".npz": _read_npz,
    ".pdparams": _read_pdparams,
}
