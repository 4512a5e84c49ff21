"""A thousand damaged files, in a process of its own; and whether the fuzzer would notice."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fuzz
from gfpgan_edu.pictures import Picture


def test_a_thousand_damaged_files_are_read_or_refused():
    command = [sys.executable, Path(fuzz.__file__), "--count", "1000"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, f"{run.stdout[-3000:]}\n{run.stderr[-1000:]}"
    assert "0 faults" in run.stdout
    assert not any(f"{what}: 0 read" in run.stdout for what in fuzz.SHARES)


def test_a_damaged_file_is_the_same_again_and_damaged():
    files = fuzz.pictures()
    whole = {data for _, data in files}
    made, again, other = ([fuzz.damaged(seed, i, "picture", files) for i in range(200)]
                          for seed in (3, 3, 4))
    assert made == again != other
    assert sum(data in whole for _, data in made) < 20
    assert {s for s, _ in made} == {s for s, _ in files}


def wrong_kind(path):
    raise KeyError("leaked")


def without_name(path):
    raise fuzz.PhotoError("something is wrong")


def of_two_lines(path):
    raise fuzz.PhotoError(f"{path}: first\nsecond")


def too_long(path):
    raise fuzz.PhotoError(f"{path}: {'x' * 2000}")


def swallows(path):
    "Takes what cannot be read for an empty picture."
    try:
        picture = fuzz.read_picture(path)
    except fuzz.PhotoError:
        picture = Picture(np.zeros((4, 4, 3), np.uint8))
    fuzz.check_pixels(path, picture)


def other_pixels(path):
    picture = fuzz.read_picture(path)
    fuzz.check_pixels(path, Picture(255 - picture.pixels))


@pytest.mark.parametrize("reader, said", [(swallows, "though Pillow alone says"),
                                          (other_pixels, "other pixels")])
def test_an_error_that_is_swallowed_and_wrong_pixels_are_faults(tmp_path, reader, said,
                                                                monkeypatch):
    files, found = fuzz.pictures(), fuzz.Found()
    monkeypatch.setitem(fuzz.READERS, "picture", (reader, fuzz.PhotoError))
    for i in range(60):
        suffix, data = fuzz.damaged(0, i, "picture", files)
        (path := tmp_path / f"{i}.{suffix}").write_bytes(data)
        fuzz.try_file(path, "picture", found)
    assert len(found.faults) > 1 and all(said in line for line in found.faults)


@pytest.mark.parametrize("reader, said", [
    (wrong_kind, "KeyError"), (without_name, "something is wrong"), (of_two_lines, "second"),
    (too_long, "xxx")])
def test_a_reader_with_a_fault_is_found_out_and_the_file_kept(tmp_path, monkeypatch, capsys,
                                                              reader, said):
    whole, fallen = len(fuzz.pictures()), iter(range(10**6))

    def read(path):
        if next(fallen) == whole + 2:                      # the third damaged file
            reader(path)

    monkeypatch.setitem(fuzz.READERS, "picture", (read, fuzz.PhotoError))
    monkeypatch.setattr(fuzz.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setattr(fuzz.torch, "set_num_threads", lambda n: None)
    assert fuzz.main(["--count", "5", "--what", "picture"]) == 1
    out = capsys.readouterr().out
    assert "1 faults" in out and said in out.split("FAULT")[1]
    assert [p.name.split(".")[0] for p in (tmp_path / "files").glob("picture-*")] == ["picture-0-2"]


def test_too_much_memory_is_a_fault(tmp_path, monkeypatch):
    used = iter([10**9, 10**9 + fuzz.MOST_MEMORY + 1])
    monkeypatch.setattr(fuzz, "peak", lambda: next(used))
    assert "memory" in fuzz.fuzz(5, 0, tmp_path / "files", ["picture"]).faults[0]


def test_the_peak_of_memory_is_this_process_own():
    "Not that of the one that started it, and it grows with what is used."
    code = ("import sys; sys.path.append(sys.argv[1]); from peak import peak; a = peak(); "
            "b = bytes(range(256)) * 1_200_000; print(peak() - a)")
    held = bytes(range(256)) * 2_000_000                   # 512 MB here
    command = [sys.executable, "-c", code, Path(fuzz.__file__).parent]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 250e6 < int(run.stdout) < 400e6 < len(held)
