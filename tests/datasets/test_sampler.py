"""Batches of keys: a shuffle by (seed, epoch), cut into optimizer steps and ranks."""

from datasets.sampler import EpochBatchSampler, SampleKey


def epoch_batches(epoch, *args, start=0, **kwargs):
    sampler = EpochBatchSampler(*args, **kwargs)
    sampler.start_at(epoch, start)
    return list(sampler)


def indices(batches):
    return [key.index for batch in batches for key in batch]


def test_an_epoch_shows_images_once_in_its_own_order():
    epochs = [epoch_batches(epoch, 103, 4, 8, seed=0) for epoch in range(3)]
    for epoch, batches in enumerate(epochs):
        assert len(batches) == len(EpochBatchSampler(103, 4, 8, seed=0)) == 24  # 12 steps, 7 images dropped
        assert {len(batch) for batch in batches} == {4}
        assert len(set(indices(batches))) == 96
        assert all(key.epoch == epoch and key.repeat == 0 for batch in batches for key in batch)
    assert indices(epochs[0]) != indices(epochs[1]) != indices(epochs[2])
    assert epochs[0] == epoch_batches(0, 103, 4, 8, seed=0)
    assert epochs[0] != epoch_batches(0, 103, 4, 8, seed=1)
    assert set(range(103)) == set().union(*(indices(epoch_batches(e, 103, 4, 8, seed=0)) for e in range(8)))


def test_a_step_sees_the_same_images_on_any_number_of_ranks():
    def steps(batch_size, world_size):
        ranks = [epoch_batches(5, 50, batch_size, 8, 0, rank, world_size) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        accumulated = 8 // (batch_size * world_size)
        return [
            sorted(indices(b for batches in ranks for b in batches[first : first + accumulated]))
            for first in range(0, len(ranks[0]), accumulated)
        ]

    alone = steps(8, 1)
    assert len(alone) == 6
    assert all(len(set(step)) == 8 for step in alone)
    for batch_size, world_size in [(1, 1), (4, 2), (2, 2), (1, 8)]:
        assert steps(batch_size, world_size) == alone


def test_start_in_the_middle():
    whole = epoch_batches(2, 40, 4, 4, 0)
    assert epoch_batches(2, 40, 4, 4, 0, start=3) == whole[3:]


def test_a_small_set_repeats_images_with_other_keys():
    batches = epoch_batches(0, 3, 4, 8, seed=0)
    assert len(batches) == 2
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == 8
    assert sorted(indices(batches)[:3]) == sorted(indices(batches)[3:6]) == [0, 1, 2]


def test_replacements_are_drawn_from_all_images():
    drawn = [SampleKey(1, 2, 0).replacement(0, attempt, 10) for attempt in range(1, 200)]
    assert set(drawn) == set(range(10))
    assert SampleKey(1, 2, 0).replacement(0, 1, 10**6) != SampleKey(1, 3, 0).replacement(0, 1, 10**6)
