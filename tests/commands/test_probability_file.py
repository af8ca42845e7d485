"""probabilities.npz, written row by row."""

import tracemalloc
import zipfile

import numpy as np

from trainkit.commands.probability_file import ProbabilityFile


def written(folder, batches, classes):
    file = ProbabilityFile(folder / "p.npz", classes)
    for names, rows in batches:
        file.add(names, rows)
    file.close()
    return np.load(folder / "p.npz")


def test_it_reads_as_numpys_own(tmp_path):
    """Member by member, also with names of other lengths and alphabets, and of no image."""
    random = np.random.default_rng(0)
    names = ["a.png", "", "größer/写真.jpg", "x" * 300]
    rows = random.random((4, 3)).astype(np.float32)
    classes = ["cat", "dog", "Möwe"]
    found = written(tmp_path, [(names[:3], rows[:3]), (names[3:], rows[3:])], classes)
    np.savez_compressed(
        tmp_path / "numpys.npz",
        files=np.array(names),
        probabilities=rows,
        classes=np.array(classes),
    )
    expected = np.load(tmp_path / "numpys.npz")
    assert found.files == expected.files
    for name in expected.files:
        assert found[name].dtype == expected[name].dtype
        assert np.array_equal(found[name], expected[name])
    empty = written(tmp_path, [], classes)
    assert empty["files"].shape == (0,) and empty["probabilities"].shape == (0, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numpys.npz", "p.npz"]
    assert zipfile.ZipFile(tmp_path / "p.npz").testzip() is None


def test_rows_are_not_held_in_memory(tmp_path):
    """40 MB of rows, and of what is allocated at a time less than 4."""
    rows = np.zeros((100, 1000), dtype=np.float32)
    batches = (([f"{number}/{row}.png" for row in range(100)], rows) for number in range(100))
    tracemalloc.start()
    found = written(tmp_path, batches, [str(index) for index in range(1000)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6
    assert found["probabilities"].shape == (10_000, 1000) and found["files"][-1] == "99/99.png"
