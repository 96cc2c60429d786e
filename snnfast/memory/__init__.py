"""Memory: spikes kept for backward as bits (``packing``), and what each layer keeps (``report``)."""
