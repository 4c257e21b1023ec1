"""Graphs that compute something else are noticed."""

import pytest

from eomt.errors import InputError
from eomt.export import compare, graph
from tests.random_networks import random_network


def test_a_wrong_graph_is_noticed():
    network = random_network().eval()
    output = graph.FinalOutput(network)

    def wrong(images):
        masks, classes = output(images)
        return graph.Logits(masks, classes + 0.01 * (len(images) == 3))

    assert compare.check_graph(network, lambda images: graph.Logits(*output(images)), None).inputs == 6
    with pytest.raises(InputError, match=r"differ from PyTorch's by up to 0\.01, more than 0\.001"):
        compare.check_graph(network, wrong, None)
    with pytest.raises(InputError, match="by up to inf"):
        compare.check_graph(network, lambda images: graph.Logits(*(x / 0 * 0 for x in output(images))), 1)
