"""torchrun, with failures told in one place: ``python -m subp_dist.launch [torchrun's flags] -m subp_dist.train ...``.

torchrun itself ends a failed run with its own traceback and a report on every rank. A user wants the error of the rank
that failed first, once.
"""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from .errors import EXIT_USAGE


def main() -> None:
    """Run torchrun's command line; exit with the code of the rank that failed first."""
    # It logs each process it ends and each exit code it sees; what matters of that is said below.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        torchrun()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # A usage error has been printed by the rank itself.
        if failure.exitcode != EXIT_USAGE:
            print(f"\nerror: rank {rank} failed first: {_cause(failure)}\n", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _cause(failure) -> str:
    if failure.exitcode < 0:
        return f"killed by {signal.Signals(-failure.exitcode).name}"
    message = failure.message
    text = message.get("message", str(message)) if isinstance(message, dict) else str(message)
    return f"{text.splitlines()[0] if text else ''} (exit code {failure.exitcode}; its traceback is above)"


if __name__ == "__main__":
    main()
