"""torchrun, with failures told in one place: ``python -m subp_dist.launch [torchrun's flags] -m subp_dist.train ...``.

torchrun itself ends a failed run with its own traceback and a report on every rank; a user wants the error of the rank
that failed first, once. Three more things differ from plain torchrun: there is no restart for faulty input, or ranks
that were told to stop; each attempt meets at a new store (see ``use_fresh_stores``); and a machine that loses the
rendezvous waits for it to come back.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore, run
from torch.distributed.elastic.agent.server.api import RunResult
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from .errors import (
    EXIT_CHECKED,
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_LOADER,
    EXIT_LOST_RANK,
    EXIT_STOPPED,
    EXIT_UNREAD,
    EXIT_USAGE,
    LAUNCHER,
)
from .torch_compat import WatchedAgent, takes_for_this_machine, use_agent, use_fresh_stores

_RESTARTS = "SUBP_LAUNCH_RESTARTS"  # how often this launcher has started again, over execv
_HUNG = "it did not answer the others, nor end when it was told to, and had to be killed"
_ENDED = "ended by torchrun, for another rank"


class _Agent(WatchedAgent):
    """torchrun's agent, which also says what it restarts for, and what not to."""

    def run(self, *args, **kwargs) -> RunResult:
        try:
            return super().run(*args, **kwargs)
        except RendezvousConnectionError:
            # torchrun would close the rendezvous: what it sends over a link that is cut arrives when the link is back,
            # and ends the machines that wait for this one.
            self.leave_rendezvous_open()
            raise

    def ranks_failed(self, failures: dict[int, ProcessFailure], ended: list[ProcessFailure]) -> None:
        for failure in ended:
            failure.message = _HUNG if failure.exitcode == -signal.SIGKILL else _ENDED
        _, first = _first(failures)
        if first.exitcode in (EXIT_USAGE, EXIT_STOPPED, EXIT_UNREAD, -signal.SIGTERM):
            self.restarts_left = 0
        if self.restarts_left:
            allowed = self.get_worker_group().spec.max_restarts
            count = allowed - self.restarts_left + 1
            _say(f"{_first_error(failures)}; restart {count} of {allowed}, from the last checkpoint")


def main() -> None:
    """Run torchrun's command line; exit with the code of the rank that failed first."""
    use_agent(_Agent)
    use_fresh_stores()
    os.environ[LAUNCHER] = str(os.getpid())
    args = run.parse_args(sys.argv[1:])
    try:
        _meet(args)
        run.run(args)
    except ChildFailedError as error:
        _, failure = _first(error.failures)
        if failure.exitcode not in (EXIT_STOPPED, EXIT_UNREAD):  # the ranks have told that themselves
            _say(f"error: {_first_error(error.failures)}")
        sys.exit(EXIT_STOPPED if failure.exitcode == -signal.SIGTERM else max(failure.exitcode, 1))
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except RendezvousConnectionError as error:
        _start_again(args, error)
    except RendezvousTimeoutError:
        _say("error: the other machines did not come to the rendezvous in time")
        sys.exit(1)
    except RendezvousClosedError:
        _say("error: another machine has ended the run: the first error is in the output there")
        sys.exit(EXIT_LOST_RANK)


def _say(text: str) -> None:
    with suppress(BrokenPipeError):
        print(f"\n{text}\n", file=sys.stderr, flush=True)


def _first(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that failed first: others may have lost it, or been ended by torchrun, within the same second."""

    def order(item: tuple[int, ProcessFailure]) -> tuple[int, int, int]:
        rank, failure = item
        later = 2 if failure.message == _ENDED else failure.exitcode in (EXIT_LOST_RANK, EXIT_STOPPED)
        return 0 if failure.exitcode in (EXIT_USAGE, EXIT_UNREAD) else 1 + later, failure.timestamp, rank

    return min(failures.items(), key=order)


def _first_error(failures: dict[int, ProcessFailure]) -> str:
    rank, failure = _first(failures)
    if failure.exitcode == EXIT_LOST_RANK:
        why = f" ({failure.message})" if Path(failure.error_file).is_file() else ""
        elsewhere = "if that was on another machine, the first error is in the output there"
        return f"rank {rank} lost another rank{why}; {elsewhere}"
    if failure.exitcode == EXIT_STOPPED:
        return f"rank {rank} was stopped"
    told = failure.error_file_data["message"] if Path(failure.error_file).is_file() else ""
    if failure.exitcode in (EXIT_USAGE, EXIT_DIVERGED, EXIT_LOADER, EXIT_CHECKED) and isinstance(told, str) and told:
        return told
    if failure.message == _HUNG:
        return f"rank {rank} failed first: {_HUNG}"
    if failure.exitcode == -signal.SIGTERM:
        return f"rank {rank} was ended by SIGTERM, with nothing to save: it was starting, or exporting"
    if failure.exitcode < 0:
        return f"rank {rank} failed first: killed by {signal.Signals(-failure.exitcode).name}"
    message = failure.message
    text = message.get("message", str(message)) if isinstance(message, dict) else str(message)
    first_line = text.splitlines()[0] if text else ""
    return f"rank {rank} failed first: {first_line} (exit code {failure.exitcode}; its traceback is above)"


def _meet(args: argparse.Namespace) -> None:
    """Wait for the machine that holds the rendezvous, or find that it is this one, whatever it is called."""
    if args.standalone or args.rdzv_backend != "c10d" or not args.rdzv_endpoint or "is_host" in args.rdzv_conf:
        return
    host, port = parse_rendezvous_endpoint(args.rdzv_endpoint, default_port=29400)
    if _is_ours_and_free(host, port):
        if not takes_for_this_machine(host):
            args.rdzv_conf = ",".join(filter(None, [args.rdzv_conf, "is_host=1"]))
        return
    minutes = float(os.environ.get("JOIN_MINUTES", 30))
    if problem := _wait_for_store(host, port, minutes):
        _say(f"error: {problem}; tried for {minutes:g} minutes")
        sys.exit(1)


def _is_ours_and_free(host: str, port: int) -> bool:
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return False
    return True


def _wait_for_store(host: str, port: int, minutes: float) -> str | None:
    """Wait until a store of torch answers there; what is wrong if none does."""
    end = time.monotonic() + 60 * minutes
    warned = False
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError:
            problem = f"no rendezvous at {host}:{port}: is the command running there?"
        else:
            if _is_store(host, port):
                return None
            problem = f"what answers at {host}:{port} is another program, not a rendezvous: choose a free port"
            if not warned:
                _say(f"{problem}; trying on for {minutes:g} minutes")
                warned = True
        if time.monotonic() > end:
            return problem
        time.sleep(1)


def _is_store(host: str, port: int, seconds: float = 20) -> bool:
    """Whether a store of torch listens there; its client, left alone, waits for ever for another program's answer."""
    stores = []

    def connect() -> None:
        with suppress(RuntimeError):
            timeout = timedelta(seconds=seconds)
            stores.append(TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(stores)


def _start_again(args: argparse.Namespace, error: RendezvousConnectionError) -> None:
    """Start this launcher anew after it lost the rendezvous, as often as ``--max-restarts`` says."""
    restarts = int(os.environ.get(_RESTARTS, 0))
    reason = str(error.__cause__ or error).strip().splitlines()[0]
    if args.standalone or restarts >= args.max_restarts:
        _say(f"error: lost the rendezvous at {args.rdzv_endpoint}: {reason}")
        sys.exit(1)
    _say(f"lost the rendezvous at {args.rdzv_endpoint} ({reason}); restart {restarts + 1} of {args.max_restarts}")
    os.environ[_RESTARTS] = str(restarts + 1)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "subp_dist.launch", *sys.argv[1:]])


if __name__ == "__main__":
    main()
