"""Commands whose output nobody reads any more, as in ``| head``: they end as by SIGPIPE, and a run says what it has."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import FLAGS, LAUNCH, ROOT, environment

COMMAND = """
import os, signal, sys
from subp_dist.errors import *
from subp_dist.errors import UnreadError, report_usage_errors

@report_usage_errors
def cli():
    sys.stdin.read()  # until nobody reads the output any more
    {body}

cli()
"""
MUCH = "for _ in range(100000): print('a line')"
LITTLE = "print('a line')"  # which is written at the end
BROKEN = "r, w = os.pipe(); os.close(r); os.write(w, b'x')"


def unread(command: list[str], seconds: float = 60, unbuffered: bool = False, **streams: int) -> tuple[int, str]:
    """Exit code, and what a program says on standard error where that is read, if its output's reader has ended."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    settings = os.environ | {"PYTHONUNBUFFERED": "1" if unbuffered else ""}
    process = subprocess.Popen([sys.executable, *command], text=True, env=settings, cwd=ROOT, **pipes)
    if process.stdout:
        process.stdout.close()
        process.stdout = None
    elif process.stderr:
        process.stderr.close()
        process.stderr = None
    said = process.communicate(timeout=seconds)[1]
    return process.returncode, said or ""


@pytest.mark.parametrize("body", [MUCH, LITTLE], ids=["while it writes", "when it ends"])
@pytest.mark.parametrize("stderr", [subprocess.PIPE, subprocess.STDOUT], ids=["errors read", "errors unread"])
def test_it_ends_as_by_sigpipe_without_a_word(body, stderr):
    assert unread(["-c", COMMAND.format(body=body)], stderr=stderr) == (141, "")


def test_it_ends_so_where_standard_error_alone_is_unread():
    body = "for _ in range(100000): print('a line', file=sys.stderr)"
    assert unread(["-c", COMMAND.format(body=body)], stdout=subprocess.DEVNULL) == (141, "")


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("raise UsageError('--lr -1')", 2, "error: --lr -1"),
        ("raise Stopped('saved')", 143, "saved"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("raise UnreadError('go on')", 141, "go on"),
    ],
)
@pytest.mark.parametrize("stderr", [subprocess.PIPE, subprocess.STDOUT], ids=["errors read", "errors unread"])
def test_other_ends_keep_their_exit_codes(end, code, said, stderr):
    found, told = unread(["-c", COMMAND.format(body=f"print('a line'); {end}")], stderr=stderr)
    assert (found, told.strip()) == (code, said if stderr == subprocess.PIPE else "")


@pytest.mark.parametrize(
    ("body", "code"), [(LITTLE, 0), ("raise UsageError('--lr -1')", 2), ("raise UnreadError('go on')", 141)]
)
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_the_streams_may_be_closed_from_the_start(body, code, closed):
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed} </dev/null', sys.executable, COMMAND.format(body=body)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)


def test_output_that_cannot_be_written_is_named():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND.format(body=LITTLE)], env=os.environ | {"PYTHONUNBUFFERED": ""},
            input="", stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip() == "error: cannot write to standard output: No space left on device"


def test_the_error_of_another_pipe_keeps_its_traceback():
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(body=BROKEN)], input="", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr


INSPECT = ["-m", "subp_dist.inspect", "resnet18", "--prune-rate", "0.5"]
BENCH = ["-m", "subp_ext.bench", "tests/files/version1.subp", "--seconds", "0.01"]
KERNELS = ["-m", "subp_ext.bench.kernels", "--shapes", "resnet18", "--seconds", "0.001"]


@pytest.mark.parametrize(
    ("command", "code", "unbuffered"),
    [
        (INSPECT, 141, False),
        (INSPECT, 141, True),
        (BENCH, -signal.SIGPIPE, False),
        (BENCH, -signal.SIGPIPE, True),
        (KERNELS, -signal.SIGPIPE, False),  # unbuffered, it ends before it measures
    ],
)
def test_files_are_written_before_tables_are_printed(command, code, unbuffered, tmp_path):
    path = tmp_path / "figures.json"
    assert unread([*command, "--json", str(path)], 120, unbuffered) == (code, "")
    assert json.loads(path.read_text())


def test_a_run_says_that_it_can_go_on_and_is_not_restarted(tmp_path):
    ranks = ("--standalone", "--nproc-per-node=2", "--max-restarts=2", "-m", "subp_dist.train", "test_resnet")
    command = [*LAUNCH, *ranks, *FLAGS, "--epochs", "30", "--output", str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert "epoch   0" in process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        said = process.communicate(timeout=120)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 141, said
    told = [line for line in said.splitlines() if line.startswith(("error", "nobody", "lost", "rank", "Traceback"))]
    kept = "Earlier checkpoints are complete: go on with --resume auto"
    assert told == [f"nobody reads the output of the run any more. {kept}"], said
    assert "restart" not in said and (tmp_path / "run" / "last.pt").exists()
