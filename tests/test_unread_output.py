"""Commands whose output nobody reads any more, as in ``| head``: they end as by SIGPIPE, and a run says what it has."""

import json
import signal
import subprocess
import sys

import pytest
from runs import FLAGS, LAUNCH, ROOT, environment

COMMAND = """
import os, sys
from subp_dist.errors import report_usage_errors

@report_usage_errors
def cli():
    {body}

cli()
"""
MUCH = "for _ in range(100000): print('a line')"
LITTLE = "sys.stdin.read(); print('a line')"  # written at the end


def unread(code: str, stderr: int = subprocess.PIPE) -> tuple[int, str]:
    """Exit code, and what the program says on standard error where that is read; its output's reader has ended."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
    process = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)
    process.stdout.close()
    process.stdin.close()
    said = process.stderr.read() if process.stderr else ""
    return process.wait(60), said


@pytest.mark.parametrize("body", [MUCH, LITTLE], ids=["while it writes", "when it ends"])
def test_it_ends_as_by_sigpipe_without_a_word(body):
    assert unread(COMMAND.format(body=body)) == (141, "")


def test_standard_error_may_have_lost_its_reader_too():
    assert unread(COMMAND.format(body=MUCH), stderr=subprocess.STDOUT) == (141, "")


def test_standard_output_may_be_closed_from_the_start():
    command = ["sh", "-c", 'exec "$0" -c "$1" >&- </dev/null', sys.executable, COMMAND.format(body=LITTLE)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("before", ["", "sys.stdin.read(); "], ids=["read", "unread"])
def test_the_error_of_another_pipe_keeps_its_traceback(before):
    broken = "r, w = os.pipe(); os.close(r); os.write(w, b'x')"
    code = COMMAND.format(body=before + broken)
    done = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr


def test_the_benchmark_of_a_file_keeps_its_figures_and_ends(tmp_path):
    figures = tmp_path / "figures.json"
    file = ROOT / "tests/files/version1.subp"
    command = [sys.executable, "-m", "subp_ext.bench", str(file), "--seconds", "0.01", "--json", str(figures)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", -signal.SIGPIPE)
    assert json.loads(figures.read_text())["runs"] > 0


def test_the_plan_of_a_network_is_written_before_it_is_printed(tmp_path):
    plan = tmp_path / "plan.json"
    command = [sys.executable, "-m", "subp_dist.inspect", "resnet18", "--prune-rate", "0.5", "--json", str(plan)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait(120)) == ("", 141)
    assert json.loads(plan.read_text())


def test_a_run_says_that_it_can_go_on_and_is_not_restarted(tmp_path):
    ranks = ("--standalone", "--nproc-per-node=2", "--max-restarts=2", "-m", "subp_dist.train", "test_resnet")
    command = [*LAUNCH, *ranks, *FLAGS, "--output", str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert "epoch   0" in process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(120) == 141, said
    told = [line for line in said.splitlines() if line.startswith(("error", "what", "lost", "rank", "Traceback"))]
    assert told == [
        "what read the output of the run has ended. Earlier checkpoints are complete: go on with --resume auto"
    ], said
    assert "restart" not in said
    assert (tmp_path / "run" / "last.pt").exists()
