"""A full or read-only disk ends a fit with an error that names the file, and costs nothing that was complete."""

import errno
import shutil
from pathlib import Path

import pytest

from tests.faults.judge import check_killed, check_resumed, published, require
from tests.faults.reference import contents
from tests.faults.shim import Fault, Mode

NEED_ROOM = ("mkdir", "open", "write", "fsync")


def at_calls_that_need_room(reference):
    return [call for call in reference.calls if call.name.startswith(NEED_ROOM)]


def one_of_each_kind(calls):
    """The last of every function, and of the writes to every file: by then there are checkpoints to lose."""
    return list({call.kind if call.name == "write" else call.name: call for call in calls}.values())


def at_one_checkpoint(reference, step):
    """The calls from one checkpoint's name to the next one's: records, files and removals."""
    names = [call.number for call in reference.calls if published([call])]
    last = next(call.number for call in reference.calls if published([call]) == [step])
    first = max(number for number in names if number < last)
    return [call for call in reference.calls if first < call.number <= last]


def fail(launcher, reference, out, fault):
    """A training that the disk fails, judged as a killed one is, and by what it said."""
    ending = launcher.train(out, fault)
    error = ending.error
    require(ending.status == 1, f"the process ended with {ending.status}")
    expected = f"expected an OSError {errno.errorcode[fault.error]}"
    require(error is not None and error.get("number") == fault.error, f"{expected}, got {error}")
    require(bool(error["path"]) and Path(error["path"]).is_relative_to(out), f"the error names no file: {error}")
    check_killed(out, reference, [call for call in ending.calls if call.number < fault.at])
    return ending


def recover(launcher, reference, out, fault):
    """What a full disk or a read-only one leaves behind, and the training that goes on when it is mended."""
    ending = fail(launcher, reference, out, fault)
    left = [path for path in out.rglob(".tmp-*") if fault.mode is Mode.FULL]
    require(not left, f"a full disk can be cleaned up: {left}")
    for name in ("jsonl", "steps"):
        said = [text for text in ending.messages if text.startswith(f"logger {name!r} failed")]
        require(len(said) <= 1, f"the logger's failure was said more than once: {said}")
    check_resumed(launcher.launch(out), out, reference)
    shutil.rmtree(out)
    return ending


def recover_everywhere(launcher, reference, folder, calls, mode, error):
    lost = []
    for call in calls:
        if call.name == "unlink" and call.path.endswith(".lock"):
            continue  # a lock's file that stays keeps nobody out
        try:
            recover(launcher, reference, folder / "run", Fault(mode, call.number, error))
        except AssertionError as failure:
            lost.append(f"{mode} {call}: {failure}")
            shutil.rmtree(folder / "run", ignore_errors=True)
    assert not lost, "\n".join(lost)


def test_a_full_disk_at_each_kind_of_call_that_needs_room(launcher, reference, folder):
    calls = one_of_each_kind(at_calls_that_need_room(reference))
    recover_everywhere(launcher, reference, folder, calls, Mode.FULL, errno.ENOSPC)


@pytest.mark.slow
def test_a_full_disk_at_every_call_that_needs_room(launcher, reference, folder):
    calls = at_calls_that_need_room(reference)
    recover_everywhere(launcher, reference, folder, calls, Mode.FULL, errno.ENOSPC)


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_disk_that_becomes_read_only_before_a_checkpoint_has_its_name(launcher, reference, folder, error):
    calls = at_one_checkpoint(reference, 8)[::14]
    recover_everywhere(launcher, reference, folder, calls, Mode.READ_ONLY, error)


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_at_any_call(launcher, reference, folder):
    # A read-only disk flushes, and what an empty temporary leaves behind may be refused unseen: the run is complete.
    calls = [call for call in reference.calls if call.name not in ("fsync", "rmdir")]
    recover_everywhere(launcher, reference, folder, calls, Mode.READ_ONLY, errno.EROFS)


def test_a_disk_that_is_read_only_from_the_start_stays_as_it_is(launcher, reference, folder):
    out = folder / "run"
    ending = launcher.train(out, Fault(Mode.READ_ONLY, 1, errno.EROFS))
    assert (ending.error["number"], ending.error["path"]) == (errno.EROFS, str(out))
    assert list(folder.iterdir()) == [], "the shim sees every call that changes a file"


def test_a_run_directory_that_has_become_read_only_is_named_on_resume_and_stays_as_it_is(launcher, reference, folder):
    out = folder / "run"
    halfway = next(call for call in reference.calls if published([call]) == [4])
    assert launcher.train(out, Fault(Mode.AFTER, halfway.number)).killed
    before = contents(out)
    ending = fail(launcher, reference, out, Fault(Mode.READ_ONLY, 1, errno.EROFS))
    assert Path(ending.error["path"]).is_relative_to(out / "checkpoints")
    assert contents(out) == before
    check_resumed(launcher.launch(out), out, reference)


def test_a_record_that_finds_no_room_to_the_end_is_said_once(launcher, reference, folder):
    call = [call for call in reference.calls if call.path == "run/metrics.jsonl" and call.name == "write"][3]
    ending = recover(launcher, reference, folder / "run", Fault(Mode.FULL, call.number, errno.ENOSPC))
    (said,) = (text for text in ending.messages if "jsonl" in text)
    assert "1 records found no room to the end" in said
