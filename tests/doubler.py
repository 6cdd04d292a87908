"""An Upscaler that needs no network, for tests of all around it; as a program, it restores a
folder: IN OUT, and perhaps a shard, I/N.
"""

import json
import sys
import time
from dataclasses import asdict

from mambair_cli.batch.jobs import find_jobs
from mambair_cli.batch.manifest import Manifest
from mambair_cli.batch.pipeline import Batch
from mambair_cli.batch.shards import parse_shard, share
from mambair_cli.images.io import Image
from mambair_cli.models.choice import Choice
from mambair_cli.restore.condition import UNKNOWN
from mambair_cli.restore.size import Size

SETTINGS = {"model": "abc", "scale": 2, "quality": None}


class Doubler:
    """Every pixel becomes four. `at_work` is called with each image."""

    name, scale, backend, device = "tiny-x2", 2, "numba", "cpu"

    def __init__(self, at_work=lambda image: None):
        self.at_work = at_work
        self.choice = Choice()
        self.count = 0

    def measure(self, image):
        return UNKNOWN

    def chain(self, scale, found=UNKNOWN):
        return [self]

    def memory(self, size, image, found):
        return 1000

    def tiles(self, size, height, width, found):
        return 1

    def restore_image(self, image, size, progress, found):
        progress(0.5)
        self.count += 1
        self.at_work(image)
        progress(1.0)
        return Image(doubled(image.pixels))


def doubled(pixels):
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


if __name__ == "__main__":
    restorer, records = Doubler(lambda image: time.sleep(0.01)), []
    jobs, folder = find_jobs([sys.argv[1]], sys.argv[2])
    shard = parse_shard(sys.argv[3]) if len(sys.argv) > 3 else None
    if shard:
        jobs = share(jobs, folder, shard)
    Batch(restorer, Size(2), None, Manifest(folder, SETTINGS, shard)).run(
        jobs, records.append, lambda *_: None
    )
    print(json.dumps({"count": restorer.count, "records": [asdict(record) for record in records]}))
