"""PNGs of every kind, written by hand, and damaged ones."""

import struct
import zlib

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8),
         (4, 8), (4, 16), (6, 8), (6, 16)]  # fmt: skip
PALETTE = bytes((7 * i + 3) % 256 for i in range(3 * 16))
HEIGHT, WIDTH = 11, 13


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed(row, bits):
    """Values of a row as bytes."""
    if bits == 16:
        return row.astype(">u2").tobytes()
    per_byte = 8 // bits
    row = np.pad(row, (0, -len(row) % per_byte)).reshape(-1, per_byte)
    return (row << (8 - bits * np.arange(1, per_byte + 1))).sum(1).astype(np.uint8).tobytes()


def png(values, colour, bits, interlaced=False, extra=b"", pixels=None, size=None):
    """A PNG of `values` (H, W, channels), written by hand; `pixels` replaces the inflated rows."""
    height, width = values.shape[:2]
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first column and row, and steps, of the seven passes
        passes = [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]
    rows = b""
    for column, row, across, down in passes:
        part = values[row::down, column::across]
        rows += b"".join(b"\0" + packed(each.reshape(-1), bits) for each in part if each.size)
    header = struct.pack(
        ">IIBBBBB", *(size or (width, height)), bits, colour, 0, 0, int(interlaced)
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"PLTE", PALETTE) if colour == 3 else b"")
        + extra
        + chunk(b"IDAT", zlib.compress(rows if pixels is None else pixels))
        + chunk(b"IEND", b"")
    )


def stored(colour, bits, seed=0):
    top = 16 if colour == 3 else 2**bits
    shape = (HEIGHT, WIDTH, CHANNELS[colour])
    return np.random.default_rng(seed).integers(0, min(top, 2**bits), shape)


def as_rgb(values, colour, bits):
    """What the PNG specification makes of stored values, in 8 bits."""
    if colour == 3:
        return np.frombuffer(PALETTE, np.uint8).reshape(-1, 3)[values[..., 0]]
    values = values >> 8 if bits == 16 else values * (255 // (2**bits - 1))
    return np.repeat(values[..., :1], 3, axis=2) if colour in (0, 4) else values[..., :3]


def crafted():
    """PNGs with right checksums that no decoder can decode, by what is wrong with them."""
    values = stored(2, 8)
    size = HEIGHT * (1 + 3 * WIDTH)
    good = png(values, 2, 8)
    yield "inflates to too little", png(values, 2, 8, pixels=bytes(size // 2))
    yield "a filter that is none", png(values, 2, 8, pixels=b"\x09" * size)
    start = good.index(b"IDAT") - 4
    for name, body in (
        ("no deflate", b"\xff" * 50),
        ("empty", b""),
        ("half a stream", zlib.compress(np.random.default_rng(1).bytes(size))[:90]),
    ):
        yield name, good[:start] + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    for colour, bits, interlaced in (
        (2, 8, False),
        (2, 8, True),
        (0, 2, False),
        (0, 16, True),
        (3, 4, False),
    ):
        taller = png(stored(colour, bits), colour, bits, interlaced, size=(WIDTH, HEIGHT + 1))
        yield f"fewer rows than it says, {colour} {bits} {interlaced}", taller
    yield "far fewer rows than it says", png(values, 2, 8, size=(WIDTH, 400_000))
    yield "wider than memory", png(stored(3, 8), 3, 8, size=(2**31 - 1, HEIGHT))
    yield "of no size", png(values, 2, 8, size=(0, 0))
    yield "bits that are none", png(values % 8, 2, 8).replace(good[16:33], b"")
    for colour, bits in ((1, 8), (2, 4), (3, 16), (5, 8), (7, 200)):
        header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, 0)
        yield f"colour {colour} of {bits} bits", good[:8] + chunk(b"IHDR", header) + good[33:]
    indices = png(stored(3, 8), 3, 8)
    yield "without a palette", indices[:33] + indices[33 + 12 + len(PALETTE) :]
    yield "a palette of 4 bytes", indices.replace(chunk(b"PLTE", PALETTE), chunk(b"PLTE", b"1234"))
    yield "without pixels", good[:33] + chunk(b"IEND", b"")
    yield "without a header", good[:8] + good[33:]
    yield "an unknown chunk", good[:33] + chunk(b"ABCD", b"") + good[33:]
