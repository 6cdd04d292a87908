from mambair_cli.bench.cost import folder


def test_a_report(monkeypatch):
    monkeypatch.setattr(folder, "SKIPPED", 40)
    monkeypatch.setattr(folder, "RESTORED", 20)
    monkeypatch.setattr(folder, "PER_FOLDER", 7)
    told = []
    rows = folder.folder_report(True, lambda plan, outcome: told.append(len(plan.jobs)))
    assert told == [2, 1]
    told.clear()
    rows = folder.folder_report(False, lambda plan, outcome: told.append(len(plan.jobs)))
    assert told == [40, 20]
    assert [row.what.partition(":")[0] for row in rows] == [
        *3 * ["40 files listed and skipped"],
        *3 * ["20 files restored, outside the net"],
    ]
    assert [row.bar for row in rows] == 2 * ["<= 10 ms", "", "<= 1024 bytes"]
    assert all(float(row.value.split()[0]) >= 0 for row in rows if row.value.endswith("ms"))


def test_the_stand_in_counts_its_time():
    import numpy as np

    from mambair_cli.images.image import Image
    from mambair_cli.restore.condition import UNKNOWN
    from mambair_cli.restore.size import Size

    net = folder.StandIn()
    image = Image(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    result = net.restore_image(image, Size(2), lambda share: None, UNKNOWN)
    assert np.array_equal(result.pixels[::2, 1::2], image.pixels)
    assert 0 < net.seconds < 10
    assert net.cpu >= 0
