"""Classes that are one of this package's and one of another library's at the same time."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["Joined", "joined"]

_MADE: dict[tuple[type, ...], Any] = {}


class Joined(nn.Module):
    """Base of the first class of such a one.

    Pickles and copies name the classes that it is made of: no module has the joined class under a name.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, type(self).__bases__, self.__getstate__()


def joined(*bases: type) -> Any:
    """The class of several, always the same one; it bears the last one's name, which is the library's."""
    if bases not in _MADE:
        body = {"__module__": bases[0].__module__, "__doc__": bases[0].__doc__}
        _MADE[bases] = type(bases[-1].__name__, bases, body)
    return _MADE[bases]


def _new(*bases: type) -> Any:
    kind = joined(*bases)
    return kind.__new__(kind)
