"""Model cards name scores and licences."""

import re

from huggingface_hub import ModelCard

from eomt.classes import Classes
from eomt.export.model_card import model_card
from eomt.export.redact import LOCAL, redact
from eomt.weights.spec import Weights
from tests.export.exporting import weights_of
from tests.random_networks import CLASSES, random_network


def test_cards_name_the_licences():
    def card(backbone, config, **more):
        spec = {**random_network().spec, "backbone": backbone}
        return model_card(Weights("", {}, spec, "panoptic", CLASSES, **more), config, {}, "eomt", "32")

    dinov3 = card("vit_large_patch16_dinov3_qkvb", {"task_name": "cityscapes_semantic"})
    assert "license_name: dinov3-license" in dinov3
    assert "under Meta's [DINOv3 License]" in dinov3
    assert "Cityscapes' own licence agreement" in dinov3
    random = {"model": {"pretrained": False}}
    assert "no licence of pretrained weights" in card("vit_large_patch16_dinov3_qkvb", random)
    assert "license" not in card("vit_large_patch16_dinov3_qkvb", random).split("---")[1]
    for beginning in ({"weights": "/home/someone/x.bin"}, {"weights": "owner/name"}, {"ckpt": "/home/someone/x.ckpt"}):
        # Also of what was exported and is exported again.
        config = redact(redact(random | beginning))
        for backbone, words in (
            ("vit_large_patch16_dinov3_qkvb", "under Meta's"),
            ("vit_large_patch14_dinov2", "DINOv2"),
        ):
            text = card(backbone, config)
            assert "random weights" not in text
            assert "whose licence applies" in text
            assert words in text
            assert "someone" not in text
            assert "license: apache-2.0" not in text
    assert "license_name: dinov3-license" in card("vit_large_patch16_dinov3_qkvb", {**random, "weights": LOCAL})
    assert "license: apache-2.0" in card("vit_large_patch14_reg4_dinov2", {})


def test_scores_are_results_of_the_weights_that_they_belong_to():
    metrics = {"pq": 51.25, "pq_stuff": None, "step": 7, "mask_free": True}
    texts = [model_card(weights_of(random_network(), CLASSES, step=step), {}, metrics, "hf", "32") for step in (7, 8)]
    own, other = (ModelCard(text).data for text in texts)
    (result,) = own.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("pq", 51.25, "panoptic")
    assert own.library_name == "transformers"
    assert other.eval_results is None
    assert "They belong to step 7 of the run; these weights are of step 8." in texts[1]


def test_names_of_a_file_are_shown_and_do_nothing():
    names = ("<script>alert(1)</script>", "[a](javascript:alert(1))", "a|b `c` *d*", "e" * 5000, "dining_table")
    classes = Classes.from_categories({"id": k, "name": name} for k, name in enumerate(names))
    config = {"task_name": "x\n\n<img src=x> | y", "optim": {"lr": "<img src=x>"}, "data": {"global_batch": "<img>"}}
    metrics = {"<script>": "<img src=x>", "step": "<script>"}
    text = model_card(weights_of(random_network(), classes), config, metrics, "hf", "32")
    assert not re.search(r"(?<!\\)(<script|<img|\]\(javascript)", text.partition("## Configuration")[0])
    assert "| task | x \\<img src=x\\> \\| y |" in text
    assert "a\\|b \\`c\\` \\*d\\*, " + "e" * 77 + "..., dining\\_table" in text
