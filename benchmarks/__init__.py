"""The benchmark suite behind `snnfast bench`.

`cases` says what is measured, `baselines` (with `peers` and `snnfast.comparing.naive`) what is compared, `measure` and
`kept` (with `snnfast.comparing.timing`) how, `report` and `plots` how it is shown; `run` is the command. Commands of
their own: `gpu` (the kernels alone), `training`, `compare`, `sanitize`. Importing this package imports none of them.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `snnfast bench`; returns the exit code: 0, 1 where a result is wrong or missing, 2 for bad usage."""
    from .run import main as run

    return run(argv)
