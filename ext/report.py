"""What runs where, and how fast: nothing is slow in silence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from subp_ext.plan import Plan


@dataclass(frozen=True)
class ReportRow:
    """One step of a run.

    Attributes:
        node: the value it computes.
        op: the operator.
        kernel: what runs it: a kernel's name, "bilinear", "gather" or "weave" (C for any kernel set), "numpy" (a loop
            of NumPy's that writes to the arena), "none" (no work is left) or "reference" (NumPy, in memory of its own).
        why: the reason for that choice.
        shape: of the result.
        kept_share: blocks kept over all blocks; None without weights.
        macs: multiply-accumulates on kept weights; None where they are not counted.
        dense_macs: those of the same layer without zeros.
        sparse_macs: of `macs`, those on sparse kernels.
        products: of what numbers, "float32", "bfloat16" or "int8"; empty where none are counted.
        ms: best of the runs so far; None unless profiled.
        dtype: of the result's elements.
        passed_over: faster kernels that exist for this step, each with why it does not run here.
    """

    node: str
    op: str
    kernel: str
    why: str
    shape: tuple[int, ...]
    kept_share: float | None
    macs: int | None
    dense_macs: int | None
    sparse_macs: int
    products: str
    ms: float | None
    dtype: str
    passed_over: tuple[str, ...]

    @property
    def gflops(self) -> float | None:
        """GFLOP/s on kept weights; None unless profiled."""
        return 2e-6 * self.macs / self.ms if self.macs and self.ms else None


@dataclass(frozen=True)
class Report:
    """All steps for one set of input shapes.

    Attributes:
        rows: in the order they run.
        input_shapes: that they are for.
        batch: images of the run; it runs in parts where `input_shapes` has fewer.
        threads: per run.
        kernel_set: in use.
        arena_bytes: memory of one run beside the weights.
        weight_bytes: packed weights.
    """

    rows: tuple[ReportRow, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    batch: int
    threads: int
    kernel_set: str
    arena_bytes: int
    weight_bytes: int

    @property
    def part(self) -> str:
        """What to say of a run in parts, else empty."""
        together = self.input_shapes[0][0] if self.input_shapes and self.input_shapes[0] else self.batch
        return f"{together} of {self.batch} images at a time" if together != self.batch else ""

    @property
    def shares(self) -> dict[str, float]:
        """Of all kept MACs those on sparse kernels, on dense kernels and on fallbacks; 0 without any."""
        groups = {"sparse": 0, "dense": 0, "fallback": 0}
        for row in self.rows:
            groups["sparse"] += row.sparse_macs
            groups["fallback" if row.kernel == "reference" else "dense"] += (row.macs or 0) - row.sparse_macs
        total = sum(groups.values())
        return {name: macs / total if total else 0.0 for name, macs in groups.items()}

    @property
    def product_shares(self) -> dict[str, float]:
        """Of all kept MACs those in float32, in bfloat16 and in int8; 0 without any."""
        macs = dict.fromkeys(("float32", "bfloat16", "int8"), 0)
        for row in self.rows:
            if row.macs:
                macs[row.products or "float32"] += row.macs
        total = sum(macs.values())
        return {name: count / total if total else 0.0 for name, count in macs.items()}

    @property
    def int8_share(self) -> float:
        """Of all kept MACs those of integers; 0 without any."""
        return self.product_shares["int8"]

    @property
    def fallbacks(self) -> tuple[ReportRow, ...]:
        """The steps on the reference."""
        return tuple(row for row in self.rows if row.kernel == "reference")

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Faster kernels that exist and why they do not run here, each once."""
        return tuple(dict.fromkeys(reason for row in self.rows for reason in row.passed_over))

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values: attributes, `gflops` in each row, `shares`, `part`, `macs`, `dense_macs` and `ms`."""
        rows = [
            asdict(row) | {"shape": list(row.shape), "passed_over": list(row.passed_over), "gflops": row.gflops}
            for row in self.rows
        ]
        return asdict(self) | {
            "rows": rows,
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "shares": self.shares,
            "product_shares": self.product_shares,
            "int8_share": self.int8_share,
            "fallbacks": len(self.fallbacks),
            "part": self.part,
            **self._totals(),
        }

    def _totals(self) -> dict[str, Any]:
        profiled = all(row.ms is not None for row in self.rows)
        return {
            "macs": sum(row.macs or 0 for row in self.rows),
            "dense_macs": sum(row.dense_macs or 0 for row in self.rows),
            "ms": sum(row.ms or 0 for row in self.rows) if profiled else None,
        }

    def __str__(self) -> str:
        """A table, and the totals below it."""
        head = ("node", "op", "type", "shape", "kept", "kernel", "why", "MMACs", "ms", "GFLOP/s")
        table = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(width) if i in (4, 7, 8, 9) else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.input_shapes)
        part, totals, shares = self.part and f", {self.part}", self._totals(), self.shares
        lines += [
            "",
            f"input {shapes}{part}; {self.threads} threads; {self.kernel_set}; arena {self.arena_bytes / 1e6:.1f} MB, "
            f"weights {self.weight_bytes / 1e6:.1f} MB",
            f"MACs: {totals['macs'] / 1e6:.1f} M of {totals['dense_macs'] / 1e6:.1f} M; "
            + ", ".join(f"{share:.1%} on {name} kernels" for name, share in list(shares.items())[:2])
            + f", {shares['fallback']:.1%} on fallbacks"
            + "".join(f"; {share:.1%} in {name}" for name, share in list(self.product_shares.items())[1:] if share),
            f"steps on the reference: {len(self.fallbacks)} of {len(self.rows)}",
            *(f"faster, but not here: {reason}" for reason in self.passed_over),
        ]
        return "\n".join(lines)


def _cells(row: ReportRow) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        row.node,
        row.op,
        row.dtype,
        "x".join(map(str, row.shape)),
        number(row.kept_share, ".0%"),
        row.kernel,
        row.why,
        number(row.macs / 1e6 if row.macs else None, ".1f"),
        number(row.ms, ".3f"),
        number(row.gflops, ".1f"),
    )


def report_rows(plan: Plan, seconds: list[float] | None) -> tuple[ReportRow, ...]:
    """The rows of a plan; `seconds` per step if they were measured."""
    return tuple(
        ReportRow(
            step.node,
            step.op,
            step.kernel,
            step.why,
            step.writes[0].view.shape,
            step.kept_share,
            step.macs,
            step.dense_macs,
            step.sparse_macs,
            step.products,
            None if seconds is None else seconds[number] * 1e3,
            str(step.writes[0].type),
            step.passed_over,
        )
        for number, step in enumerate(plan.steps)
    )
