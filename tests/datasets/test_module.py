"""The data module: both sets under a Lightning trainer, exact resume, accumulation."""

from functools import partial
from types import SimpleNamespace

import albumentations as A
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datasets.module import SegmentationData
from eomt.errors import InputError
from eomt.postprocess.geometry import FIT_AND_PAD
from eomt.targets import targets_from_id_map
from tests.memory_reader import CATEGORIES, MemoryReader

pytestmark = pytest.mark.xdist_group("data")


class Recorder(LightningModule):
    """Remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append((batch.names, int(batch.images.sum()), int(batch.targets.ids.sum())))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated += batch.image_ids

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


def data(train=MemoryReader, val=MemoryReader, **changes):
    options = {"image_size": 16, "batch_size": 2, "global_batch": 2, "num_workers": 0, "seed": 0}
    return SegmentationData(train, val, FIT_AND_PAD, **(options | changes))


def trainer(folder, callbacks=(), **changes):
    options = {"max_steps": 15, "max_epochs": -1, "limit_train_batches": None}
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        use_distributed_sampler=False,
        **(options | changes),
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "epoch", "stops"),
    [({"limit_train_batches": None}, 6, [4, 6, 11]), ({"limit_train_batches": 4}, 4, [3, 4])],
)
def test_a_resumed_run_sees_what_an_unbroken_one_sees(tmp_path, changes, epoch, stops):
    every_step = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    whole = Recorder()
    unbroken = trainer(tmp_path, [every_step], **changes)
    augmented = [A.OneOf([A.InvertImg(p=1), A.ColorJitter(p=1)], p=0.5), A.Rotate(p=0.5)]
    unbroken.fit(whole, data(num_workers=2, augmentations=augmented))
    assert len(whole.trained) == 15
    epochs = [whole.trained[k : k + epoch] for k in range(0, 15, epoch)]
    assert all(len({name for names, *_ in batches for name in names}) == 2 * len(batches) for batches in epochs)
    for stop in stops:
        resumed = Recorder()
        run = trainer(tmp_path, **changes)
        run.fit(resumed, data(num_workers=2, augmentations=augmented), ckpt_path=str(tmp_path / f"step={stop}.ckpt"))
        assert resumed.trained == whole.trained[stop:]
        assert run.current_epoch == unbroken.current_epoch


def test_validation_sees_every_image_at_every_epoch(tmp_path):
    model = Recorder()
    run = trainer(tmp_path, max_steps=12, num_sanity_val_steps=0)
    run.fit(model, data(eval_batch_size=5, num_workers=1))
    assert model.validated == [*range(1000, 1012)] * 2


def test_readers_are_opened_once_and_only_where_needed(tmp_path):
    opened = []

    def factory(name):
        return lambda: (opened.append(name), MemoryReader())[1]

    module = data(factory("train"), factory("val"))
    assert not opened
    assert module.classes == MemoryReader().classes
    trainer(tmp_path, max_steps=2).fit(Recorder(), module)
    assert sorted(opened) == ["train", "val"]
    opened.clear()
    trainer(tmp_path).validate(Recorder(), data(factory("train"), factory("val")), verbose=False)
    assert opened == ["val"]


def test_both_sets_need_the_same_classes(tmp_path):
    fewer = data(val=lambda: MemoryReader(categories=CATEGORIES[:4]))
    with pytest.raises(InputError, match=r"data\.val has 4 classes where data\.train has 5"):
        fewer.setup("fit")
    renamed = [*CATEGORIES[:4], {"id": 5, "name": "sky", "isthing": 0}]
    with pytest.raises(InputError, match=r"class 4 as 'sky' \(id 5, stuff\) where .* 'class 4' \(id 5, stuff\)"):
        data(val=lambda: MemoryReader(categories=renamed)).setup("fit")
    recoloured = [c | {"color": [k, k, k]} for k, c in enumerate(CATEGORIES)]
    data(val=lambda: MemoryReader(categories=recoloured)).setup("fit")


def test_options_reach_the_loaders():
    module = data(image_size=(16, 32), scale_range=[0.5, 0.5], eval_batch_size=3, augmentations=[A.InvertImg(p=1)])
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch.images.shape == (2, 3, 16, 32)
    assert not batch.images[:, :, 9:].any()  # half of 16 is 8
    assert next(iter(module.val_dataloader())).inputs.shape == (3, 3, 16, 32)
    plain = data(image_size=(16, 32), scale_range=[0.5, 0.5])
    assert any(
        not torch.equal(a.images, b.images)
        for a, b in zip(module.train_dataloader(), plain.train_dataloader(), strict=True)
    )
    other = data(seed=1).train_dataloader()
    assert [b.names for b in other] != [b.names for b in data().train_dataloader()]


@pytest.mark.parametrize(
    ("max_images", "limit", "ranks", "scored"),
    [
        (None, 1.0, 1, 12),
        (7, 1.0, 2, 7),
        (None, 2, 1, 6),
        (None, 2, 3, 12),
        (7, 1, 2, 6),
        (None, 0.5, 1, 6),
        (5, 9, 1, 5),
    ],
)
def test_validated_images_are_counted(max_images, limit, ranks, scored):
    module = data(eval_batch_size=3, max_images=max_images)
    module.trainer = SimpleNamespace(world_size=ranks, limit_val_batches=limit)
    assert module.validated() == (scored, 12)


def test_accumulation():
    def accumulation(global_batch, batch_size, devices):
        return data(global_batch=global_batch, batch_size=batch_size).accumulation(devices)

    assert accumulation(16, 4, 4) == 1
    assert accumulation(16, 2, 2) == 4
    assert accumulation(16, 16, 1) == 1
    for values, ways in [
        ((16, 3, 2), r"data.global_batch=12 or 18; or a data.batch_size that divides 8$"),
        ((16, 32, 1), r"data.global_batch=32; or a data.batch_size that divides 16$"),
        ((16, 4, 3), r"data.global_batch=12 or 24$"),
    ]:
        with pytest.raises(InputError, match=ways):
            accumulation(*values)


def test_a_set_smaller_than_a_step_is_said_once(caplog):
    module = data(global_batch=200)
    module.train_batches()
    module.train_dataloader()
    assert caplog.text.count("data.global_batch=200 is more than the") == 1


def test_the_trainer_must_accumulate_to_the_global_batch(tmp_path):
    with pytest.raises(InputError, match=r"accumulate_grad_batches is 1, .* takes 3 batches of 2 on 1 devices"):
        trainer(tmp_path).fit(Recorder(), data(global_batch=6))
    model = Recorder()
    run = trainer(tmp_path, accumulate_grad_batches=2, max_steps=3)
    run.fit(model, data(global_batch=4))
    assert len(model.trained) == 6


def test_a_step_is_whole_at_the_end_of_an_epoch(tmp_path):
    """14 images, 3 batches of 2 a step: 12 images an epoch, so that no step sees less."""
    model = Recorder()
    run = trainer(tmp_path, accumulate_grad_batches=3, max_steps=4)
    run.fit(model, data(train=lambda: MemoryReader(14), global_batch=6))
    assert len(model.trained) == 12
    assert run.current_epoch == 2
    names = np.array([names for names, *_ in model.trained]).reshape(2, 12)
    assert all(len(set(epoch)) == 12 for epoch in names)


def test_the_first_images_alone():
    module = data(train=partial(MemoryReader, bare=[1]), max_images=4)
    module.setup("fit")
    trained = sorted(name for batch in module.train_dataloader() for name in batch.names)
    assert set(trained) <= {"image000", "image002", "image003"}
    assert len(trained) == 2  # the last incomplete batch is dropped
    assert [n for batch in module.val_dataloader() for n in batch.names] == [f"image{k:03d}" for k in range(4)]
    assert len(data(max_images=100).reader("val")) == 12


@pytest.mark.parametrize("size", [(1, 1), (50, 20000), (20000, 50)])
def test_extreme_images_are_read_and_cropped(size):
    class One(MemoryReader):
        def size(self, index):
            return size if index == 0 else super().size(index)

        def read(self, index):
            if index:
                return super().read(index)
            return np.full((*size, 3), 7, np.uint8), targets_from_id_map(np.ones(size, np.int64), [1], [0])

    reader = One(count=2)
    loading = data(reader, reader, image_size=32)
    for _ in range(3):
        (batch,) = loading.train_dataloader()
        assert batch.images.shape == (2, 3, 32, 32)
        assert all(batch.targets.counts)
    (batch,) = loading.val_dataloader()
    assert batch.placements[0].height, batch.placements[0].width == size
