"""Files of torch.save, read without unpickling: only plain values and tensors can come out.

Python's pickles are programs, and even torch's own guarded reader can be made to crash, to hang or
to take all memory. This one follows the few operations that torch.save writes, bounds how many
there are, how deep they nest and how much they ask for, and calls nothing that a file names.
"""

import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

# Operations, of which a tensor takes about 20; a published file has 20,000.
MOST_OPERATIONS = 2_000_000
# Containers within containers; a published file has 4.
DEEPEST = 32
# Bytes of the part that is not tensors.
LONGEST_PICKLE = 2**26
# How often the numbers of a file may be in its tensors, which can share them.
SHARED = 4

# The first two values of a file in the format before PyTorch 1.6.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class _Unsafe(ValueError):
    """It asks for what is no tensor and no plain value."""


class _Mark:
    """Where the operands of an operation begin on the stack."""


class _Storage:
    """The numbers that tensors are views of, and their type; None: the tensor tells it."""

    def __init__(self, content: bytearray, dtype: torch.dtype | None):
        self.content, self.dtype = content, dtype


class _Function:
    """What a file may call."""

    def __init__(self, call: Callable[..., Any]):
        self.call = call


def read_torch_file(path: Path) -> Any:
    """The content of a file of torch.save: dictionaries, lists, tuples, text, numbers, tensors.

    Tensors are on the CPU. Checksums of archives are compared. Ordered dictionaries become plain
    ones, and parameters tensors.
    Raises CheckpointError where it is no such file, damaged, or holds anything else.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        if zipfile.is_zipfile(path):
            return _from_archive(path)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] == b"PK\3\4":
                raise CheckpointError(f"{path} is damaged: its end is missing; fetch it again")
            if data[:1] != b"\x80":
                raise CheckpointError(
                    f"{path} is no checkpoint; name a .pth, .pt or .safetensors file"
                )
            return _from_old_format(data)
    except CheckpointError:
        raise
    except _Unsafe as error:
        raise CheckpointError(
            f"{path} holds more than tensors ({error}), so loading it could run code: refused;"
            " save its state_dict alone, or as safetensors"
        ) from None
    except Exception as error:
        # zipfile, struct and torch raise nearly anything on damaged files.
        reason = " ".join(str(error).split())[:200]
        kind = type(error).__name__
        why = reason if isinstance(error, ValueError) and reason else f"{kind}: {reason}"
        raise CheckpointError(
            f"{path} is no checkpoint, or a damaged one ({why}); fetch it again"
        ) from None


def _from_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise CheckpointError(
                f"{path} is a compressed archive, which torch.save never writes: refused"
            )
        names = [m.filename for m in members if m.filename.split("/")[1:] == ["data.pkl"]]
        if len(names) != 1:
            raise ValueError("a zip archive without data.pkl")
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.NameToInfo:
            order = archive.read(f"{folder}byteorder")
            if order != b"little":
                raise ValueError(f"its numbers are {order[:9]!r} endian")
        if archive.getinfo(names[0]).file_size > LONGEST_PICKLE:
            raise ValueError("its part without tensors is too long")
        size = path.stat().st_size
        left = size

        def read(key: str, dtype: torch.dtype | None, count: int) -> _Storage:
            nonlocal left
            member = archive.getinfo(f"{folder}data/{key}")
            left -= member.file_size
            if left < 0:
                raise ValueError("its tensors are larger than the file")
            if member.file_size != count * (dtype.itemsize if dtype else 1):
                raise ValueError(f"storage {key} has {member.file_size} bytes")
            return _Storage(bytearray(archive.read(member)), dtype)

        with archive.open(names[0]) as file:
            content = file.read()
        return _Reader(read, SHARED * size).value_of(_Bytes(content))


def _from_old_format(data: mmap.mmap) -> Any:
    """Four pickles, a list of names, and for each of them the numbers of a storage."""
    plain = _Reader(_no_storage, len(data))
    if plain.value_of(data) != MAGIC or plain.value_of(data) != PROTOCOL:
        raise ValueError("a pickle that torch.save did not write")
    plain.value_of(data)
    # Tensors come before their numbers: storages begin empty and are filled at the end.
    storages: dict[str, _Storage] = {}
    left = len(data)

    def promise(key: str, dtype: torch.dtype | None, count: int) -> _Storage:
        nonlocal left
        size = count * (dtype.itemsize if dtype else 1)
        left -= size
        if left < 0:
            raise ValueError("its tensors are larger than the file")
        storages[key] = _Storage(bytearray(size), dtype)
        return storages[key]

    content = _Reader(promise, SHARED * len(data)).value_of(data)
    names = plain.value_of(data)
    if not isinstance(names, list) or sorted(names) != sorted(storages):
        raise ValueError("its storages have other names than its tensors")
    for name in names:
        storage = storages[name]
        (count,) = struct.unpack("<q", data.read(8))
        width = storage.dtype.itemsize if storage.dtype else 1
        numbers = data.read(len(storage.content))
        if count * width != len(storage.content) or len(numbers) != len(storage.content):
            raise ValueError(f"storage {name} is cut off")
        storage.content[:] = numbers
    return content


def _no_storage(key: str, dtype: torch.dtype | None, count: int) -> _Storage:
    raise ValueError("a tensor where none belongs")


class _Bytes:
    """What `pickletools` reads from, without asking for memory that a file only claims to need."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def tell(self) -> int:
        return self.place

    def read(self, count: int) -> bytes:
        found = self.content[self.place : self.place + max(0, count)]
        self.place += len(found)
        return found

    def readline(self) -> bytes:
        end = self.content.find(b"\n", self.place)
        return self.read((end + 1 if end >= 0 else len(self.content)) - self.place)


class _Reader:
    """Follows the operations of a pickle on a stack of values.

    Args:
        storage: gives the storage of a name, type and number of elements.
        limit: bytes that all tensors together may have.
    """

    def __init__(self, storage: Callable[[str, torch.dtype | None, int], _Storage], limit: int):
        self.storage, self.limit, self.operations = storage, limit, 0

    def value_of(self, data: Any) -> Any:
        """The value of the next pickle. Raises ValueError and whatever a damaged one causes."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.depth: dict[int, int] = {}
        # Containers stay alive, so that the keys of `depth` are theirs alone.
        self.kept: list[Any] = []
        self.storages: dict[str, _Storage] = {}
        for operation, argument, _ in pickletools.genops(data):
            self.operations += 1
            if self.operations > MOST_OPERATIONS:
                raise ValueError("it has too many parts")
            if operation.name == "STOP":
                (value,) = self.stack
                return value
            self._apply(operation.name, argument)
        raise ValueError("it ends in the middle")

    def _apply(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append(self._container({} if name == "EMPTY_DICT" else []))
        elif name == "MARK":
            stack.append(_Mark)
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"):
            count = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}.get(name)
            items = self._popped() if count is None else self._taken(count)
            stack.append(self._container(tuple(items), items))
        elif name in ("APPEND", "APPENDS"):
            items = self._popped() if name == "APPENDS" else self._taken(1)
            self._into(list, items).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._popped() if name == "SETITEMS" else self._taken(2)
            self._set(items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ", 1) if name == "GLOBAL" else self._taken(2)
            stack.append(_named(*parts))
        elif name == "BINPERSID":
            stack.append(self._persistent(stack.pop()))
        elif name == "REDUCE":
            function, arguments = self._taken(2)
            if not isinstance(function, _Function) or not isinstance(arguments, tuple):
                raise _Unsafe("a call")
            stack.append(self._container(function.call(self, *arguments)))
        elif name == "BUILD":
            # The attributes of an ordered dictionary, which are not its content.
            if not isinstance(stack[-2], dict):
                raise _Unsafe("an object")
            stack.pop()
        else:
            raise _Unsafe(name)

    def _taken(self, count: int) -> list[Any]:
        """The last values, off the stack."""
        if count > len(self.stack) or _Mark in self.stack[len(self.stack) - count :]:
            raise ValueError("values are missing")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _popped(self) -> list[Any]:
        """The values above the last mark, off the stack with it."""
        items = []
        while (item := self.stack.pop()) is not _Mark:
            items.append(item)
        return items[::-1]

    def _container(self, value: Any, items: Any = ()) -> Any:
        if isinstance(value, (dict, list, tuple)):
            self.kept.append(value)
            self.depth[id(value)] = 1
            self._deepen(value, items)
        return value

    def _deepen(self, container: Any, items: Any) -> None:
        deepest = max((self.depth.get(id(item), 0) for item in items), default=0)
        depth = max(self.depth[id(container)], 1 + deepest)
        if depth > DEEPEST:
            raise ValueError("it is nested too deep")
        self.depth[id(container)] = depth

    def _into(self, kind: type, items: list[Any]) -> Any:
        container = self.stack[-1]
        if type(container) is not kind:
            raise _Unsafe("an object")
        self._deepen(container, items)
        return container

    def _set(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        if not all(isinstance(key, (str, int)) for key in keys):
            raise ValueError("a key is no text")
        self._into(dict, values).update(zip(keys, values, strict=True))

    def _persistent(self, identity: Any) -> _Storage:
        kind, dtype, key, _, count, *view = identity
        known = isinstance(dtype, torch.dtype) or dtype is _Storage
        if kind != "storage" or not known or any(part is not None for part in view):
            raise _Unsafe("an object of another file")
        if not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise ValueError("a storage without name or size")
        if key not in self.storages:
            self.storages[key] = self.storage(key, None if dtype is _Storage else dtype, count)
        return self.storages[key]

    def tensor(self, storage: _Storage, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
        """A view of a storage; the rest tells about gradients."""
        dtype = storage.dtype
        if dtype is None:
            raise ValueError("a tensor of no type")
        return self._view(storage, dtype, offset, size, stride)

    def typed_tensor(self, storage: _Storage, offset: int, *rest: Any) -> Tensor:
        """As `tensor`, with its type behind what tells about gradients."""
        size, stride, _, _, dtype, *_ = rest
        if not isinstance(dtype, torch.dtype):
            raise ValueError("a tensor of no type")
        return self._view(storage, dtype, offset, size, stride)

    def _view(
        self, storage: _Storage, dtype: torch.dtype, offset: int, size: Any, stride: Any
    ) -> Tensor:
        self.limit -= math.prod(size) * dtype.itemsize
        if self.limit < 0:
            raise ValueError("its tensors are larger than the file")
        if not storage.content:
            return torch.empty(size, dtype=dtype)
        numbers = torch.frombuffer(storage.content, dtype=dtype)
        return numbers.as_strided(size, stride, offset)


VALUES = {
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
FUNCTIONS = {
    ("collections", "OrderedDict"): _Function(lambda reader: {}),
    ("torch", "Size"): _Function(lambda reader, size: size),
    ("torch._utils", "_rebuild_tensor"): _Function(_Reader.tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_Reader.tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_Reader.typed_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda reader, data, *rest: data),
}


def _named(module: Any, name: Any) -> Any:
    """What stands for a global of Python. Raises _Unsafe where a file may not name it."""
    if (module, name) in FUNCTIONS:
        return FUNCTIONS[module, name]
    if module == "torch" and name in STORAGES:
        return STORAGES[name]
    if (module, name) == ("torch.storage", "UntypedStorage"):
        return _Storage
    dtype = getattr(torch, name, None) if module == "torch" and isinstance(name, str) else None
    if isinstance(dtype, torch.dtype):
        return dtype
    raise _Unsafe(f"{module}.{name}"[:100])
