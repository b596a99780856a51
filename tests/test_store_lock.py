"""Killed runs, full disks and a second run on the same folder."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vbkit.errors import StoreError, StoreLockedError
from vbkit.store import ResultStore, load_table

WRITER = """
import sys, time
from vbkit.store import ResultStore
from vbkit.tables import Column, TableSchema
schema = TableSchema("t", (Column("n", "int64"), Column("text", "string")))
store = ResultStore(sys.argv[1])
with store.lock():
    store.clean()
    n = 0
    while True:
        n += 1
        if n == 2:
            print("ready", flush=True)
        frame = schema.frame([{"n": n, "text": str(i) * 200} for i in range(300)])
        for video in "abc":
            store.write(schema, video, frame, fingerprint=str(n))
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_writer_leaves_whole_files_and_a_free_lock(tmp_path: Path):
    rng = random.Random(0)
    for _ in range(4):
        process = start(WRITER, tmp_path)
        time.sleep(rng.uniform(0.05, 0.4))
        with pytest.raises(StoreLockedError), ResultStore(tmp_path).lock():
            pass
        kill(process)
        for path in (tmp_path / "tables" / "t").iterdir():
            assert path.suffix == ".parquet"
            assert len(set(pq.read_table(path)["n"].to_pylist())) == 1
        store = ResultStore(tmp_path)
        with store.lock():
            store.clean()
            assert list((tmp_path / ".tmp").glob("*")) == []
    frame = load_table(tmp_path, "t")
    assert (frame.groupby("video_id").size() == 300).all()


def test_a_second_run_is_told_who_holds_the_folder(tmp_path: Path):
    process = start(WRITER, tmp_path)
    try:
        with pytest.raises(StoreLockedError, match=rf"pid {process.pid} on .*wait.*--out"), \
                ResultStore(tmp_path).lock():
            pass
        begin = time.monotonic()
        with pytest.raises(StoreLockedError, match=r"after 0\.5 s"), \
                ResultStore(tmp_path).lock(wait_s=0.5):
            pass
        assert 0.4 < time.monotonic() - begin < 10
    finally:
        kill(process)


def test_a_waiting_run_gets_the_folder_when_it_is_free(tmp_path: Path):
    first, second = ResultStore(tmp_path), ResultStore(tmp_path)
    got: list[float] = []

    def wait() -> None:
        with second.lock(wait_s=30):
            got.append(time.monotonic())

    with first.lock():
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        assert not got
        free = time.monotonic()
    thread.join(20)
    assert got
    assert got[0] >= free


def test_lock_is_reentrant_and_is_released(tmp_path: Path):
    store = ResultStore(tmp_path)
    own = f"this process itself .pid {os.getpid()}"
    with store.lock(), store.lock(), pytest.raises(StoreLockedError, match=own), \
            ResultStore(tmp_path).lock():
        pass
    with store.lock():
        with store.lock():
            pass
        with pytest.raises(StoreLockedError), ResultStore(tmp_path).lock():
            pass
    with pytest.raises(RuntimeError), store.lock():
        raise RuntimeError
    with ResultStore(tmp_path).lock():
        pass


ORPHAN = """
import fcntl, json, os, sys, time
from vbkit.store import lock
folder = sys.argv[1]
# What a run leaves when it was killed while a forked child, which inherited the lock, lives on.
owner = os.fork()
if owner == 0:
    with open(os.path.join(folder, ".lock-owner.json"), "w") as file:
        json.dump(lock._this_process(), file)
    os._exit(0)
os.waitpid(owner, 0)
handle = open(os.path.join(folder, ".lock"), "w")
fcntl.flock(handle, fcntl.LOCK_EX)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_a_lock_that_outlives_its_holder_does_not_block(tmp_path: Path):
    process = start(ORPHAN, tmp_path)
    try:
        with ResultStore(tmp_path).lock(), pytest.raises(StoreLockedError, match="this process"), \
                ResultStore(tmp_path).lock():
            pass
    finally:
        kill(process)


def test_a_holder_on_another_machine_is_never_taken_for_dead(tmp_path: Path):
    owner = '{"pid": 999999999, "host": "elsewhere", "node": "elsewhere", "since": "2024-05-01"}'
    with ResultStore(tmp_path).lock():
        (tmp_path / ".lock-owner.json").write_text(owner)
        with pytest.raises(StoreLockedError, match="pid 999999999 on elsewhere, since 2024"), \
                ResultStore(tmp_path).lock():
            pass
        (tmp_path / ".lock-owner.json").write_text("torn {")
        with pytest.raises(StoreLockedError, match="another process"), ResultStore(tmp_path).lock():
            pass


FULL = """
import resource, sys
from vbkit.errors import StoreError
from vbkit.store import ResultStore
from vbkit.tables import Column, TableSchema
schema = TableSchema("t", (Column("x", "float64"),))
store = ResultStore(sys.argv[1])
print("ready", flush=True)
store.write(schema, "a", schema.frame([{"x": 0.5}]), fingerprint="old")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as on a full disk, writing stops midway
import random
try:
    store.write(schema, "a", schema.frame([{"x": random.random()} for _ in range(50000)]),
                fingerprint="new")
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
def test_a_full_disk_leaves_the_old_rows(tmp_path: Path):
    process = start(FULL, tmp_path)
    message, _ = process.communicate(timeout=60)
    assert "cannot write" in message
    assert "free some space and run again" in message
    assert len(message.splitlines()) == 1
    assert ResultStore(tmp_path).fingerprint("t", "a") == "old"
    assert list((tmp_path / ".tmp").iterdir()) == []
    assert load_table(tmp_path, "t")["x"].tolist() == [0.5]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write it")
def test_a_folder_without_permission(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"may write|cannot use"), ResultStore(tmp_path).lock():
            pass
    finally:
        tmp_path.chmod(0o700)
