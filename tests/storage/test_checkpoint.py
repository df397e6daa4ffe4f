"""Checkpoints: bits that changed are noticed, damage costs one checkpoint and not the run."""

import errno
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

from pfgm_jax.errors import UserError
from pfgm_jax.storage import checkpoint, step_files

TREE = {
    "params": {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.zeros((), np.float32)},
    "opt_state": (np.int32(7) * np.ones((), np.int32), [np.ones(3, np.float64)]),
}


def shifted(tree, by):
    return jax.tree.map(lambda a: np.asarray(a + by, a.dtype), tree)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def test_round_trip_in_any_tree(tmp_path):
    checkpoint.save(tmp_path, 3, TREE)
    step, items = checkpoint.restore(tmp_path, TREE)
    assert step == 3
    assert_equal(items, TREE)
    assert jax.tree.structure(items) == jax.tree.structure(TREE)


def test_only_what_is_asked_for_is_read(tmp_path):
    checkpoint.save(tmp_path, 3, TREE)
    assert checkpoint.restore(tmp_path, {"params": TREE["params"]})[1].keys() == {"params"}


def test_newest_of_those_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, shifted(TREE, step), keep=2)
    step, items = checkpoint.restore(tmp_path, TREE)
    assert step == 3
    assert_equal(items, shifted(TREE, 3))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_nothing_saved_yet(tmp_path):
    assert checkpoint.restore(tmp_path, TREE) is None
    (tmp_path / "checkpoints").mkdir()
    assert checkpoint.restore(tmp_path, TREE) is None


def test_a_digest_that_does_not_match_passes_the_step_over(tmp_path, capsys, monkeypatch):
    # Orbax restores a flipped bit silently; stand in for one by values that are not those of the digest.
    checkpoint.save(tmp_path, 1, TREE)
    describe = checkpoint._describe
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_describe", lambda items: describe(TREE))
        wrong = shifted(TREE, 0)
        wrong["params"]["w"][1, 2] += 1e-6
        checkpoint.save(tmp_path, 2, wrong)
    step, items = checkpoint.restore(tmp_path, TREE)
    assert step == 1
    assert_equal(items, TREE)
    assert "checkpoint 2" in capsys.readouterr().err


def test_saving_goes_on_after_a_damaged_step_was_passed_over(tmp_path):
    checkpoint.save(tmp_path, 10, TREE)
    (tmp_path / "checkpoints" / "20").mkdir()
    assert checkpoint.restore(tmp_path, TREE)[0] == 10
    checkpoint.save(tmp_path, 15, shifted(TREE, 1))
    step, items = checkpoint.restore(tmp_path, TREE)
    assert step == 15
    assert_equal(items, shifted(TREE, 1))


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_byte_never_restores_wrong_values(tmp_path, seed):
    checkpoint.save(tmp_path, 1, TREE)
    checkpoint.save(tmp_path, 2, TREE)
    rng = np.random.default_rng(seed)
    files = sorted(p for p in (tmp_path / "checkpoints" / "2").rglob("*") if p.is_file() and p.stat().st_size)
    path = files[rng.integers(len(files))]
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(data))
    assert_equal(checkpoint.restore(tmp_path, TREE)[1], TREE)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run with the steps 1 and 2, of other values each, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("two")
    for step in (1, 2):
        checkpoint.save(folder, step, shifted(TREE, step))
    return folder


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


SPOILT = {
    "was changed": flip,
    "was cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "is missing": lambda path: path.unlink(),
    "is a stray file": lambda path: path.with_name("stray").write_bytes(b"x"),
}


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("damage", SPOILT)
def test_whatever_file_is_spoilt_values_are_right_and_the_file_is_named(two_steps, tmp_path, capsys, damage, every):
    """Each file of the newest step in turn: its values or those of the step before, never others, never none."""
    files = [path for path in (two_steps / "checkpoints" / "2").rglob("*") if path.is_file() and path.stat().st_size]
    files = sorted(files)[::every]
    assert len(files) > 1
    for number, path in enumerate(files):
        workdir = shutil.copytree(two_steps, tmp_path / str(number))
        spoilt = workdir / path.relative_to(two_steps)
        SPOILT[damage](spoilt)
        step, items = checkpoint.restore(workdir, TREE)
        assert_equal(items, shifted(TREE, step))
        said = capsys.readouterr().err
        usable, wrong = checkpoint.examine(workdir, 2, TREE)
        assert usable == (step == 2)
        name = str(path.relative_to(two_steps / "checkpoints" / "2"))
        if path.name == step_files.LIST and damage != "is a stray file":
            assert step == 2 and wrong == ([] if damage == "is missing" else ["files.json is damaged"])
            continue
        if damage == "is a stray file":
            name = str(pathlib.PurePath(name).with_name("stray"))
        assert any(line.startswith(f"{name} {damage}") for line in wrong), (name, wrong)
        assert f"{name} {damage}" in said or (step == 2 and damage != "is a stray file")


def test_what_is_written_is_read_back_before_anything_is_removed(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, TREE, keep=1)
    write = step_files.write

    def write_and_spoil(folder):  # a disk that does not keep what it takes
        write(folder)
        for path in (folder / "params").rglob("*"):
            if path.is_file():
                flip(path)

    monkeypatch.setattr(step_files, "write", write_and_spoil)
    with pytest.raises(OSError) as caught:
        checkpoint.save(tmp_path, 2, shifted(TREE, 1), keep=1)
    assert caught.value.errno == errno.EIO
    assert_equal(checkpoint.restore(tmp_path, TREE)[1], TREE)


RUN = {"config": {"process.D": 128.0, "model.multipliers": (1, 2)}, "derived": {"sigma_max": 24.5}}


def test_arrays_are_not_restored_under_other_settings(tmp_path):
    checkpoint.save(tmp_path, 1, TREE, run=RUN)
    more = {"config": RUN["config"] | {"optim.new": 1}, "derived": {}}  # of a version that has more settings
    for run in (None, RUN, more):
        assert_equal(checkpoint.restore(tmp_path, TREE, run=run)[1], TREE)
    with pytest.raises(UserError, match=r"made with process.D=128.0, but config.json says 64.0"):
        checkpoint.restore(tmp_path, TREE, run=RUN | {"config": {"process.D": 64.0}})
    with pytest.raises(UserError, match=r"made with derived.sigma_max=24.5"):
        checkpoint.restore(tmp_path, TREE, run=RUN | {"derived": {"sigma_max": 25.0}})
    usable, wrong = checkpoint.examine(tmp_path, 1, TREE, RUN | {"derived": {"sigma_max": 25.0}})
    assert not usable and "derived.sigma_max" in wrong[0]


def test_an_empty_step_folder_is_passed_over(tmp_path, capsys):
    checkpoint.save(tmp_path, 1, TREE)
    (tmp_path / "checkpoints" / "9").mkdir()
    assert checkpoint.restore(tmp_path, TREE)[0] == 1
    assert "checkpoint 9" in capsys.readouterr().err


def test_all_damaged(tmp_path):
    (tmp_path / "checkpoints" / "9").mkdir(parents=True)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.restore(tmp_path, TREE)


def test_another_network_is_named(tmp_path):
    checkpoint.save(tmp_path, 1, TREE)
    other = {"params": {"w": np.zeros((3, 5), np.float32), "b": TREE["params"]["b"]}}
    with pytest.raises(UserError, match=r"params\['w'\] is float32\[3, 4\] there and float32\[3, 5\] here"):
        checkpoint.restore(tmp_path, other)
    with pytest.raises(UserError, match="absent"):
        checkpoint.restore(tmp_path, {"params": {"w": TREE["params"]["w"]}})
    half = {"params": {"w": TREE["params"]["w"].astype(np.float16), "b": TREE["params"]["b"]}}
    with pytest.raises(UserError, match="float16"):
        checkpoint.restore(tmp_path, half)


# ---- the digest itself


def digest_of(workdir, step):
    return pathlib.Path(workdir, "checkpoints", str(step), "digest", "metadata")


def test_a_damaged_digest_is_a_damaged_step_and_no_other_network(tmp_path, capsys):
    """Whatever byte of it changes: keys and types would otherwise read as those of another network."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, shifted(TREE, step))
    path = digest_of(tmp_path, 2)
    whole = path.read_bytes()
    for key in (b"['w']", b"float32", b"params", b'"step"', b'"sha256"', b'"arrays"'):
        at = whole.index(key) + len(key) // 2
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert checkpoint.restore(tmp_path, TREE)[0] == 1, key
        assert "checkpoint 2" in capsys.readouterr().err
    path.write_bytes(whole)
    assert checkpoint.restore(tmp_path, TREE)[0] == 2


def test_a_step_under_another_number_is_not_taken(tmp_path, capsys):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, shifted(TREE, step))
    folder = tmp_path / "checkpoints"
    (folder / "10").rename(folder / "90")
    assert checkpoint.restore(tmp_path, TREE)[0] == 20
    assert "step 10 under another number" in capsys.readouterr().err


@pytest.fixture
def old_form(monkeypatch):
    """Saves as before digests had a checksum."""
    monkeypatch.setattr(checkpoint, "_seal", lambda step, arrays, run: arrays)


def test_digests_of_older_versions_restore(tmp_path, old_form):
    checkpoint.save(tmp_path, 1, TREE)
    assert json.loads(digest_of(tmp_path, 1).read_bytes()).keys() == TREE.keys()
    assert_equal(checkpoint.restore(tmp_path, TREE)[1], TREE)
    with pytest.raises(UserError, match="another network"):
        checkpoint.restore(tmp_path, {"params": {"w": TREE["params"]["w"]}})


def test_a_damaged_digest_of_an_older_version_costs_one_step(tmp_path, old_form, capsys):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, TREE)
    path = digest_of(tmp_path, 2)
    path.write_bytes(path.read_bytes().replace(b"['w']", b"['v']"))
    assert checkpoint.restore(tmp_path, TREE)[0] == 1
    assert "checkpoint 2" in capsys.readouterr().err


# ---- what is removed, and when


@pytest.fixture
def failing(monkeypatch):
    """Orbax as it fails on a full disk."""
    import orbax.checkpoint as ocp

    def save(manager, step, **_):
        (manager.directory / f"{step}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: Error writing \"w\": Failed to write [os_error_code='28']")

    def fail():
        monkeypatch.setattr(ocp.CheckpointManager, "save", save)

    return fail


def test_nothing_is_lost_on_a_full_disk(tmp_path, failing):
    checkpoint.save(tmp_path, 1, TREE, keep=1)
    failing()
    for step in (1, 2):  # the same step again, and the next one
        try:
            checkpoint.save(tmp_path, step, TREE, keep=1)
        except OSError as error:
            assert step == 2 and error.errno == errno.ENOSPC
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert_equal(checkpoint.restore(tmp_path, TREE)[1], TREE)


def test_a_disk_without_room_is_not_filled_first(tmp_path, monkeypatch, failing):
    failing()  # as it would if it were asked
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(OSError) as caught:
        checkpoint.save(tmp_path, 1, TREE)
    assert caught.value.errno == errno.ENOSPC and caught.value.__cause__ is None


def test_a_damaged_step_ahead_is_there_until_its_successor_is(tmp_path, failing):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, TREE)
    failing()
    with pytest.raises(OSError):
        checkpoint.save(tmp_path, 15, TREE)
    assert checkpoint.steps(tmp_path) == [10, 20]


def test_a_damaged_step_of_the_same_number_is_saved_anew(tmp_path):
    checkpoint.save(tmp_path, 1, TREE)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "params")
    checkpoint.save(tmp_path, 1, TREE)
    assert_equal(checkpoint.restore(tmp_path, TREE)[1], TREE)


def test_the_best_step_is_kept_beside_the_newest(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, shifted(TREE, step), keep=2, best=2 if step >= 2 else 1)
    assert checkpoint.steps(tmp_path) == [2, 4, 5]
    assert_equal(checkpoint.restore(tmp_path, TREE, step=2)[1], shifted(TREE, 2))
    with pytest.raises(UserError, match="no checkpoint of step 3; there are 2, 4, 5"):
        checkpoint.restore(tmp_path, TREE, step=3)
