"""The files of a store of scored rollouts (`limbeck.teachers.store`): records one after the other.

A record is a header of 52 bytes (`Header`, then its CRC-32) and a payload: ids and tail as `wire.pack` has them, codes
of 20 bits (`wire.to_codes`: the upper 16 as differences along a row, the lower 4 two to a byte), every array as byte
planes (high bytes are alike, low ones are noise), through zlib. 16 bits would do for a student near its teacher; 20
keep a divergence of 20 nats to 1e-4.
A record that was cut by a kill, or damaged, is passed over and never a fault.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.signal import Ask, Kind, TopK
from limbeck.teachers import wire

MAGIC = b"LBK1"
HEADER, CRC = struct.Struct("<4s16sBBxxIdIII"), struct.Struct("<I")
SIZE = HEADER.size + CRC.size
KINDS: tuple[Kind, ...] = ("topk", "named", "union", "sampled")
STEPS = 2**20 - 2
LEVEL = 3  # zlib's: 1 takes 1 to 2% more bytes in 4/5 of the time, 6 takes 1 to 2% less in twice the time
HIGH, TAIL, WHOLE = 1, 2, 4  # bits of a header's layout: there is ids_high, log_tail; ids_high has a byte for each id


class Header(NamedTuple):
    """columns: ids a token. length, crc: the payload's."""

    magic: bytes
    key: bytes
    kind: int
    layout: int
    columns: int
    temperature: float
    tokens: int
    length: int
    crc: int


@dataclass
class Segment:
    """One file of records, to which its writer may still be adding. It is mapped while it is read and no longer: a map
    holds a file descriptor, and a store that many processes have written to has many segments."""

    path: Path
    size: int = 0  # bytes that there were to look at
    scanned: int = 0  # bytes that were read as records
    broken: int = 0  # places where no header could be read, though one came later

    def new(self) -> Iterator[tuple[int, Header]]:
        """Offset and header of every record that has come since the last call. Payloads are not touched."""
        size = self.path.stat().st_size
        if size == self.size:
            return
        self.size = size
        with self._mapped() as data:
            while (found := _next(data, self.scanned)) is not None:
                at, header = found
                self.broken += at > self.scanned
                self.scanned = at + SIZE + header.length
                yield at, header

    def payload(self, at: int) -> tuple[Header, bytes] | None:
        """The record there; None where it is damaged."""
        try:
            with self._mapped() as data:
                header = _header(data, at)
                payload = b"" if header is None else data[at + SIZE : at + SIZE + header.length]
        except FileNotFoundError:  # removed while we run
            return None
        return None if header is None or zlib.crc32(payload) != header.crc else (header, payload)

    def _mapped(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def cut(self) -> bool:
        """Something stands after the last whole record: its writer was killed, or is writing at this moment."""
        return self.scanned < self.size


def _next(data: mmap.mmap, at: int) -> tuple[int, Header] | None:
    """The first record from `at` on; None where the file ends, or where the record is not all there."""
    header = _header(data, at)
    while header is None:
        at = data.find(MAGIC, at + 1)
        if at < 0:
            return None
        header = _header(data, at)
    return (at, header) if at + SIZE + header.length <= len(data) else None


def _header(data: mmap.mmap, at: int) -> Header | None:
    """None for bytes that are not a header."""
    if at + SIZE > len(data) or CRC.unpack_from(data, at + HEADER.size)[0] != zlib.crc32(data[at : at + HEADER.size]):
        return None
    header = Header(*HEADER.unpack_from(data, at))
    return header if header.magic == MAGIC and header.kind < len(KINDS) else None


def encode(key: bytes, ask: Ask, signal: TopK) -> tuple[Header, bytes]:
    """A signal as header and payload."""
    arrays = wire.pack([signal], 32)
    layout = HIGH * ("ids_high" in arrays) + TAIL * ("log_tail" in arrays)
    if layout & HIGH and arrays["ids_high"].shape == arrays["ids_low"].shape:
        layout += WHOLE
    codes, arrays["spans"] = wire.to_codes(arrays["logprobs"], STEPS)
    coarse, fine = codes >> 4, torch.nn.functional.pad(codes & 0xF, (0, codes.shape[1] % 2))
    arrays["coarse"] = (coarse.diff(prepend=torch.zeros_like(coarse[:, :1])) & 0xFFFF).to(torch.uint16)
    arrays["fine"] = (fine[:, ::2] << 4 | fine[:, 1::2]).to(torch.uint8)
    tokens, columns = signal.ids.shape
    planes = b"".join(_planes(arrays[name]) for name, *_ in _arrays(layout, tokens, columns))
    payload = zlib.compress(planes, LEVEL)
    kind = KINDS.index(ask.kind)
    header = Header(MAGIC, key, kind, layout, columns, ask.temperature, tokens, len(payload), zlib.crc32(payload))
    return header, payload


def record(header: Header, payload: bytes) -> bytes:
    head = HEADER.pack(*header)
    return head + CRC.pack(zlib.crc32(head)) + payload


def decode(header: Header, payload: bytes, valid: int) -> TopK:
    """The inverse of `encode`, but for the rounding. Raises zlib.error and WireError for what cannot be one."""
    form = _arrays(header.layout, header.tokens, header.columns)
    size = sum(prod(shape) * dtype.itemsize for _, dtype, shape in form)
    planes = bytearray(zlib.decompressobj().decompress(payload, size + 1))
    if len(planes) != size:
        raise wire.WireError(f"{len(planes)} bytes, not the {size} that the header promises")
    arrays: wire.Arrays = {}
    at = 0
    for name, dtype, shape in form:
        end = at + prod(shape) * dtype.itemsize
        arrays[name] = _from_planes(planes[at:end], dtype).reshape(shape)
        at = end
    coarse, fine = arrays.pop("coarse").to(torch.int32).cumsum(-1) & 0xFFFF, arrays.pop("fine").to(torch.int32)
    nibbles = torch.stack([fine >> 4, fine & 0xF], -1).flatten(1)[:, : header.columns]
    arrays["logprobs"] = wire.from_codes(coarse << 4 | nibbles, arrays.pop("spans"), STEPS).float()
    return wire.unpack(arrays, [header.tokens], valid=valid)[0]


def _arrays(layout: int, tokens: int, columns: int) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, type and shape of the arrays of a payload, in their order."""
    wide, tall = (tokens, columns), (tokens,)
    packed = wide if layout & WHOLE else (tokens, -(-columns // 4))
    high = [("ids_high", torch.uint8, packed)] if layout & HIGH else []
    tail = [("log_tail", torch.float32, tall)] if layout & TAIL else []
    return [
        ("ids_low", torch.uint16, wide),
        *high,
        ("coarse", torch.uint16, wide),
        ("fine", torch.uint8, (tokens, -(-columns // 2))),
        ("spans", torch.float32, tall),
        *tail,
    ]


def _planes(array: Tensor) -> bytes:
    plain = array.clone(memory_format=torch.contiguous_format)  # a tensor of one number may have any stride
    return plain.view(torch.uint8).reshape(-1, array.element_size()).t().contiguous().numpy().tobytes()


def _from_planes(planes: bytearray, dtype: torch.dtype) -> Tensor:
    if not planes:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(planes, dtype=torch.uint8).reshape(dtype.itemsize, -1).t().reshape(-1).view(dtype)
