"""Autograd around the ops: what is kept for backward, what is refused, and a batch's statistics.

``integrate`` is for neurons whose currents are taken as they are, ``normalize`` for batch-normalized ones,
``statistics`` for what those are normalized by.
"""
