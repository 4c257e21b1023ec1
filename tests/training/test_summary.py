"""Summary of a run."""

from types import SimpleNamespace

from eomt.training.summary import summary


def test_a_run_that_is_no_longer_than_its_warm_up_says_so():
    def of_run(steps):
        data = SimpleNamespace(batch_size=4, validated=lambda: (1, 1))
        trainer = SimpleNamespace(accumulate_grad_batches=2, world_size=1, precision="32-true")
        network = SimpleNamespace(image_size=(8, 8), num_queries=3, spec={"backbone_options": None})
        recipe, task = SimpleNamespace(warmup_steps=(100, 200)), SimpleNamespace(kind="instance")
        run = SimpleNamespace(total_steps=steps, classes=[], windows=[], parameters=list, trainer=trainer, data=data)
        run.network, run.recipe, run.task = network, recipe, task
        return summary(run)

    assert "note" not in of_run(301)
    for steps in (300, 200):
        assert f"warmup_steps=[100, 200], takes 300 steps, and the run has {steps}: the backbone" in of_run(steps)
