"""Reads mutated image files under limits of memory and time, and writes what could be read; prints
figures as JSON.

python tests/fuzz_images.py COUNT [NAME], where NAME is a file of PHOTOS in test_decode, else it
takes all. Any exception but MambairError, a file that takes too long, and a picture that was read
but cannot be written end it with a traceback.
"""

import collections
import faulthandler
import json
import random
import re
import resource
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path

from encoded_photos import PHOTOS

from mambair_cli.errors import CallError, MambairError
from mambair_cli.images.io import decode_image, encode_image

# bytes of addresses, a gigabyte of which belongs to the libraries
MEMORY = 2 * 2**30
# what fits into that, however false the header
MAX_PIXELS = 64 * 2**20
SECONDS = 10
OUTPUTS = ("png", "tif", "jpg", "webp", "ppm", "avif")


def mutated(data, other, chance):
    """Data with one to four changes: bits or numbers altered, ends or parts cut off, parts doubled
    or of other.
    """
    result = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        # headers, which say how much there is
        near = min(len(result), chance.choice((60, 600, len(result))))
        place = chance.randrange(near)
        # TIFF has its header at the end
        place = chance.choice((place, len(result) - 1 - place))
        size = chance.randrange(1, chance.choice((2, 16, 300)))
        kind = chance.choice(("bit", "byte", "number", "end", "cut", "double", "splice"))
        if kind == "bit":
            result[place] ^= 1 << chance.randrange(8)
        elif kind == "byte":
            result[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == "number":
            width, order = chance.choice((2, 4)), chance.choice(("big", "little"))
            value = chance.choice(
                (0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width) - 1, chance.randrange(2**16))
            )
            result[place : place + width] = value.to_bytes(width, order)
        elif kind == "end":
            del result[max(1, place) :]
        elif kind == "cut":
            del result[max(1, place) : place + size]
        elif kind == "double":
            result[place:place] = result[place : place + size]
        else:
            source = chance.randrange(len(other))
            result[place : place + size] = other[source : source + size]
    return with_checksums(bytes(result)) if chance.random() < 0.7 else bytes(result)


def with_checksums(data):
    """Mend the sums of PNG chunks, so that what they hold is looked at; leave other files."""
    result, place = bytearray(data), 8
    while data[:8] == b"\x89PNG\r\n\x1a\n" and place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        end = place + 8 + size
        if end + 4 > len(data):
            break
        struct.pack_into(">I", result, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(result)


def run(name, count):
    """The figures of count mutations of one file."""
    names, chance = list(PHOTOS), random.Random(name)
    outcomes, slowest = collections.Counter(), 0.0
    for number in range(count):
        data = mutated(PHOTOS[name], PHOTOS[chance.choice(names)], chance)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        started = time.perf_counter()
        try:
            image = decode_image(data, "input", max_pixels=MAX_PIXELS)
        except MambairError as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:
            raise AssertionError(f"reading file {number} of {name}") from error
        else:
            outcomes["read"] += 1
            output = OUTPUTS[number % len(OUTPUTS) if image.pixels.size < 50_000 else 0]
            try:
                encode_image(image, output)
            # too large for the format
            except CallError:
                outcomes["not written"] += 1
            except Exception as error:
                raise AssertionError(f"writing file {number} of {name} as {output}") from error
        slowest = max(slowest, time.perf_counter() - started)
        faulthandler.cancel_dump_traceback_later()
    # getrusage tells at least the peak of who started this
    status = Path("/proc/self/status").read_text("ascii")
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return {"name": name, "slowest": round(slowest, 3), "peak": 1024 * int(peak[1]), **outcomes}


if __name__ == "__main__":
    faulthandler.enable()
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for name in sys.argv[2:] or PHOTOS:
        print(json.dumps(run(name, int(sys.argv[1]))), flush=True)
