"""What inference mode makes can be trained with afterwards."""

from __future__ import annotations

import pytest
import torch

import snnfast as sf


@pytest.mark.parametrize("layer", ["IF", "LIF", "BatchNormIF", "BatchNormLIF"])
def test_tensors_made_in_inference_mode_are_trained_with(layer):
    """Not themselves, which torch does not allow, but what comes before and beside them."""

    def thresholds_and_more():
        tables = {"threshold": torch.full((4,), 0.5)}
        if "LIF" in layer:
            tables["tau"] = torch.full((4,), 3.0)
        return getattr(sf, layer)(*([4] if "Batch" in layer else []), **tables)

    with torch.inference_mode():
        inference = thresholds_and_more()
    current = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    gradients = []
    for module in (inference, thresholds_and_more()):
        x = current.clone().requires_grad_()
        module.eval()(x).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_a_current_made_in_inference_mode_trains_a_threshold():
    with torch.inference_mode():
        current = torch.ones(3, 2, 4)
    layer = sf.LIF(learn_threshold=True, learn_tau=True)
    layer(current).sum().backward()
    assert layer.threshold.grad is not None and layer.tau_logit.grad is not None
    normalized = sf.BatchNormIF(4)
    normalized(current + torch.arange(4.0)).sum().backward()
    assert normalized.weight.grad is not None
