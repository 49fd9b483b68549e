"""ELF files of 32-bit little-endian machines, read as far as sizes, symbols and load addresses go.

Source: Tool Interface Standard, Executable and Linking Format (ELF) specification 1.2, May 1995.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from midhaul.errors import DataError

_HEADER = struct.Struct("<16sHHIIIIIHHHHHH")
_SECTION = struct.Struct("<10I")
_SEGMENT = struct.Struct("<8I")
_SYMBOL = struct.Struct("<IIIBBH")
_NOBITS, _SYMTAB, _ALLOC, _WRITE, _LOAD = 8, 2, 2, 1, 1


@dataclass(frozen=True)
class Section:
    """A named piece of an image. `stored` is false where the file holds no bytes of it, as for .bss."""

    name: str
    address: int
    offset: int
    bytes: int
    allocated: bool
    writable: bool
    stored: bool


@dataclass(frozen=True)
class Segment:
    """Bytes that are put at an address before the program starts."""

    address: int
    data: bytes
    offset: int


@dataclass(frozen=True)
class Symbol:
    """A name for an address; `section` is 0 where another file defines it."""

    name: str
    address: int
    bytes: int
    kind: int
    section: int


@dataclass(frozen=True)
class Elf:
    """What is read of a file."""

    machine: int
    entry: int
    sections: tuple[Section, ...]
    segments: tuple[Segment, ...]
    symbols: tuple[Symbol, ...]

    def address(self, symbol: str) -> int:
        """Gives a symbol's address. Raises: DataError if the file has no such symbol."""
        for found in self.symbols:
            if found.name == symbol and found.section:
                return found.address
        raise DataError(f"the image has no symbol {symbol!r}; was it built by this version of midhaul?")

    def offset_of(self, address: int) -> int:
        """Gives where in the file the byte lies that is loaded at an address. Raises: DataError if none is."""
        for segment in self.segments:
            if segment.address <= address < segment.address + len(segment.data):
                return segment.offset + address - segment.address
        raise DataError(f"the image has no bytes for address {address:#x}; was it built by this version of midhaul?")


def _word(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode()


def _symbols(data: bytes, heads: list[tuple[int, ...]]) -> Iterator[Symbol]:
    for head in heads:
        if head[1] == _SYMTAB:
            names = heads[head[6]]
            text = data[names[4] : names[4] + names[5]]
            for row in _SYMBOL.iter_unpack(data[head[4] : head[4] + head[5]]):
                name, address, size, info, _, section = row
                yield Symbol(_word(text, name), address, size, info & 15, section)


def read(data: bytes) -> Elf:
    """Gives the sections, segments and symbols of an ELF file. Raises: DataError if it isn't one."""
    if data[:6] != b"\x7fELF\x01\x01":
        raise DataError("this isn't a 32-bit little-endian ELF file; give one that midhaul's toolchain built")
    try:
        header = _HEADER.unpack_from(data)
        machine, entry, segments_at, sections_at = header[2], header[4], header[5], header[6]
        num_segments, num_sections, names_in = header[10], header[12], header[13]
        heads = [_SECTION.unpack_from(data, sections_at + i * _SECTION.size) for i in range(num_sections)]
        names = data[heads[names_in][4] : heads[names_in][4] + heads[names_in][5]]
        sections = tuple(
            Section(_word(names, h[0]), h[3], h[4], h[5], bool(h[2] & _ALLOC), bool(h[2] & _WRITE), h[1] != _NOBITS)
            for h in heads[1:]
        )
        rows = [_SEGMENT.unpack_from(data, segments_at + i * _SEGMENT.size) for i in range(num_segments)]
        segments = tuple(
            Segment(row[3], data[row[1] : row[1] + row[4]], row[1]) for row in rows if row[0] == _LOAD and row[4]
        )
        symbols = tuple(_symbols(data, heads))
    except (struct.error, IndexError, ValueError) as error:
        raise DataError(f"the ELF file is cut short or damaged ({error}); build it again") from error
    return Elf(machine, entry, sections, segments, symbols)
